// Depthwise convolution on the CPU. A task is a tile of pixels of one image and block of channels; its inputs are
// gathered into zero-padded scratch tiles first, from either memory format, so that the loops over taps neither check
// borders nor convert. In the lanes of a vector lie channels, whatever the sizes, the stride and the dilation are, or,
// where that is faster, columns of a plane.
// Compiled once for each instruction set by foreach_isa.h, inside a namespace: no include guard.

#include "common/vector_simd.h"
// It builds on that one, and the next one on it.
#include "common/units_simd.h"
// Products of bfloat16.
#include "common/amx_tiles_simd.h"
// Activations.
#include "common/math_simd.h"
// The innermost loops of most convolutions.
#include "depthwise_conv2d/register_block_simd.h"
// The same with fewer products.
#include "depthwise_conv2d/winograd_block_simd.h"
// And along the columns of a map.
#include "depthwise_conv2d/tall_kernel_simd.h"
// Tiles of maps, then what runs on them.
#include "depthwise_conv2d/lane_tiles_simd.h"
// Forward, and the gradient of x.
#include "depthwise_conv2d/lane_convolution_simd.h"
// With fewer products.
#include "depthwise_conv2d/winograd_lanes_simd.h"
// With still fewer, for tall kernels.
#include "depthwise_conv2d/tall_lanes_simd.h"
// The same with the columns of a plane in the lanes: tiles, three ways to convolve them, and what surrounds those.
#include "depthwise_conv2d/plane_tiles_simd.h"
// In float32, or of bfloat16 pairs.
#include "depthwise_conv2d/row_convolution_simd.h"
// In float32 with fewer products.
#include "depthwise_conv2d/winograd_planes_simd.h"
// In bfloat16 on AMX.
#include "depthwise_conv2d/banded_convolution_simd.h"
// Both.
#include "depthwise_conv2d/plane_convolution_simd.h"
// The gradients of the parameters.
#include "depthwise_conv2d/lane_correlation_simd.h"

// Channels in the lanes; planes, rows in registers; planes in bfloat16 on AMX.
enum class Path { kLanes, kRows, kBands };

template <typename scalar_t>
bool is_stepless(const Correlation<scalar_t>& c) {
  return std::max({c.stride.h, c.stride.w, c.dilation.h, c.dilation.w, c.spread.h, c.spread.w}) == 1;
}

// Whether channels in the lanes are multiplied as accumulators: a unit of two taps needs two, and CPUs with AMX
// multiply float32 faster than pairs.
template <typename scalar_t>
bool multiplies_accumulators(const Correlation<scalar_t>& c) {
  using operand_t = operand_type<scalar_t>;
  return std::is_same_v<operand_t, acc_type<scalar_t>> || c.kernel.w < kUnitDepth<operand_t> || c.amx;
}

// Whether minimal filtering along the columns, too, takes less time, which in channels_last it does not of pairs.
template <typename scalar_t>
bool is_tall(const Correlation<scalar_t>& c) {
  if constexpr (std::is_same_v<acc_type<scalar_t>, float>) {
    const bool pairs = !multiplies_accumulators(c);
    if (!is_stepless(c) || (pairs && c.channels_last)) return false;
    return TallLanes<scalar_t>::pays(
        c, pairs ? 2 * c.kernel.h * units<operand_type<scalar_t>>(c.kernel.w) : pair_products(c.kernel));
  }
  return false;
}

// Whether channels in the lanes, transposed to and fro, take less time than planes, of which small ones fill their
// vectors badly.
template <typename scalar_t>
bool is_small(const Correlation<scalar_t>& c) {
  if constexpr (std::is_same_v<acc_type<scalar_t>, float>) {
    using operand_t = operand_type<scalar_t>;
    constexpr int64_t lanes = kLanes<float>;
    constexpr int64_t kPlane = 250, kPixel = 30;  // of each plane, and of each pixel, in products
    if (c.x.column_step != 1 || c.x.row_step != c.in.w || c.tile.w != c.out.w) return false;
    const auto parts = [&](int64_t size) { return (c.tile.w + size - 1) / size; };
    const int64_t rows = whole_steps(c, kBlockRows), taps = c.kernel.h * c.kernel.w;
    const int64_t pair = pair_products(c.kernel);
    int64_t of_planes = parts(lanes) * taps;
    if (kUnitDepth<operand_t> == 2) {
      of_planes = parts(2 * lanes) * 2 * c.kernel.h * units<operand_t>(c.kernel.w);
    } else if (WinogradPlanes<scalar_t>::pays(c)) {
      of_planes = parts(2 * lanes) * (pair + WinogradPlanes<scalar_t>::kCost);
    }
    const int64_t of_lanes = WinogradLanes<scalar_t>::pays(c) ? parts(2) * pair : c.tile.w * taps;
    return of_lanes * rows + kPixel * c.tile.h * c.tile.w <= (of_planes * rows + kPlane) * lanes;
  }
  return false;
}

template <typename scalar_t>
Path path_of(const Correlation<scalar_t>& c) {
  if (!is_stepless(c) || std::is_same_v<scalar_t, double>) return Path::kLanes;
#if defined(MIXER_KERNELS_ISA_AMX)
  if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
    if (c.amx) return BandedConvolution<scalar_t, AmxTiles>::pays(c) ? Path::kBands : Path::kLanes;
  }
#endif
  // A unit of two taps needs two.
  if (c.kernel.w < kUnitDepth<operand_type<scalar_t>>) return Path::kLanes;
  // At most an eighth of the lanes may be empty where that is a choice.
  const bool fills_lanes = 8 * whole_vectors<float>(c.channels) <= 9 * c.channels;
  return c.channels_last || (fills_lanes && (is_small(c) || is_tall(c))) ? Path::kLanes : Path::kRows;
}

// The tasks of depthwise_convolve.
template <typename scalar_t>
TileGrid grid_of(const Correlation<scalar_t>& c) {
  return path_of(c) == Path::kLanes ? lane_grid(c) : plane_grid(c);
}

// moments: of the activation, a pair of numbers for each channel of each task, or null.
template <typename scalar_t>
void depthwise_convolve(const Correlation<scalar_t>& c, const Epilogue<scalar_t>& e, const Map<scalar_t>& y,
                        const Moments& moments) {
  using operand_t = operand_type<scalar_t>;
  const Path path = path_of(c);
  if constexpr (!std::is_same_v<scalar_t, double>) {
    if (path == Path::kRows) {
      if constexpr (std::is_same_v<operand_t, float>) {
        if (WinogradPlanes<scalar_t>::pays(c))
          return convolve_planes<scalar_t, WinogradPlanes<scalar_t>>(c, e, y, moments);
      }
      return convolve_planes<scalar_t, RowConvolution<scalar_t, operand_t>>(c, e, y, moments);
    }
  }
#if defined(MIXER_KERNELS_ISA_AMX)
  if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
    if (path == Path::kBands) {
      return has_amx() ? convolve_planes<scalar_t, BandedConvolution<scalar_t, AmxTiles>>(c, e, y, moments)
                       : convolve_planes<scalar_t, BandedConvolution<scalar_t, EmulatedAmxTiles>>(c, e, y, moments);
    }
  }
#endif
  if constexpr (std::is_same_v<acc_type<scalar_t>, float>) {
    if (is_tall(c)) return convolve_lanes<scalar_t, TallLanes<scalar_t>>(c, e, y, moments);
  }
  // Without steps, NCHW is here for float32 products alone.
  if (multiplies_accumulators(c) || (is_stepless(c) && !c.channels_last)) {
    if constexpr (std::is_same_v<acc_type<scalar_t>, float>) {
      if (is_stepless(c) && WinogradLanes<scalar_t>::pays(c)) {
        return convolve_lanes<scalar_t, WinogradLanes<scalar_t>>(c, e, y, moments);
      }
    }
    return convolve_lanes<scalar_t, LaneConvolution<scalar_t, acc_type<scalar_t>>>(c, e, y, moments);
  }
  convolve_lanes<scalar_t, LaneConvolution<scalar_t, operand_type<scalar_t>>>(c, e, y, moments);
}
