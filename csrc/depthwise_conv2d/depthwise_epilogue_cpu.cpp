// The CPU kernels of what follows a depthwise convolution.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/activation.h"
#include "common/dispatch.h"
#include "common/grain.h"
#include "common/isa.h"
#include "common/normal_cdf.h"
#include "common/rows.h"
#include "common/scratch.h"
#include "depthwise_conv2d/depthwise_conv2d_cpu.h"

namespace mixer_kernels {
namespace {

// Maps as matrices: in channels_last a row is a pixel and a column a channel; else a row is a channel of an image and a
// column a pixel of it.
struct Matrix {
  int64_t rows, columns, channels, rows_of_image;
  bool channels_last;

  explicit Matrix(const at::Tensor& map)
      : channels(map.size(1)), channels_last(channels > 1 ? map.stride(1) == 1 : map.stride(3) != 1) {
    const int64_t pixels = map.size(2) * map.size(3);
    columns = channels_last ? channels : pixels;
    rows_of_image = channels_last ? pixels : channels;
    rows = map.size(0) * rows_of_image;
  }

  // The map, or a copy whose columns are side by side and whose rows are evenly apart.
  at::Tensor even(const at::Tensor& map) const {
    const int64_t width = map.size(3);
    const auto step = [&](int64_t dim, int64_t elements) { return map.size(dim) == 1 || map.stride(dim) == elements; };
    const bool is_even =
        channels_last ? step(1, 1) && (width == 1 || step(2, width * map.stride(3))) : step(3, 1) && step(2, width);
    return is_even ? map
                   : map.contiguous(channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  }
};

// The rows of an even map.
template <typename scalar_t>
class MapRows {
 public:
  MapRows() = default;
  MapRows(const Matrix& matrix, const at::Tensor& map)
      : data_(elements_of<scalar_t>(map)), rows_of_image_(matrix.rows_of_image), image_step_(map.stride(0)) {
    row_step_ = map.stride(matrix.channels_last ? (map.size(3) == 1 ? 2 : 3) : 1);
  }

  explicit operator bool() const { return data_ != nullptr; }
  scalar_t* operator[](int64_t row) const {
    return data_ + row / rows_of_image_ * image_step_ + row % rows_of_image_ * row_step_;
  }

 private:
  scalar_t* data_ = nullptr;
  int64_t rows_of_image_ = 1, image_step_ = 0, row_step_ = 0;
};

template <typename scalar_t>
struct EpilogueForward {
  Matrix matrix;
  MapRows<const scalar_t> z, residual;  // residual may be absent
  const acc_of<scalar_t>*scale, *shift;
  Activation activation;
  MapRows<scalar_t> y;
};

template <typename scalar_t>
struct EpilogueSums {
  Matrix matrix;
  MapRows<const scalar_t> dy, z;
  const acc_of<scalar_t>* center;
  Activation activation;
  acc_of<scalar_t>*sum_dy, *sum_dy_act;
};

template <typename scalar_t>
struct EpilogueBackward {
  Matrix matrix;
  MapRows<const scalar_t> dy, z;
  const acc_of<scalar_t>*c0, *c1, *c2;
  bool of_statistics;  // else c1 and c2 are absent
  Activation activation;
  MapRows<scalar_t> dz;
};

}  // namespace
}  // namespace mixer_kernels

// As the convolution, which takes the same activations.
#define MIXER_KERNELS_ISA_BF16
#define MIXER_KERNELS_ISA_FILE "depthwise_conv2d/depthwise_epilogue_simd.h"
#include "common/foreach_isa.h"

namespace mixer_kernels {

void CpuEpilogue::epilogue_forward(const at::Tensor& z, const OptionalTensor& scale, const OptionalTensor& shift,
                                   const OptionalTensor& residual, int64_t activation, const at::Tensor& y) {
  dispatch_floating(z.scalar_type(), "depthwise_conv2d", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Matrix matrix(y);
    const at::Tensor even = matrix.even(z), past = residual ? matrix.even(*residual) : at::Tensor();
    const auto scales = padded_parameter<scalar_t>(scale, z.size(1), 1);
    const auto shifts = padded_parameter<scalar_t>(shift, z.size(1), 0);
    select_isa(&baseline::epilogue_forward<scalar_t>, &avx2::epilogue_forward<scalar_t>,
               &avx512::epilogue_forward<scalar_t>, &avx512_bf16::epilogue_forward<scalar_t>)(
        {matrix,
         {matrix, even},
         residual ? MapRows<const scalar_t>(matrix, past) : MapRows<const scalar_t>(),
         scales.get(),
         shifts.get(),
         static_cast<Activation>(activation),
         {matrix, y}});
  });
}

void CpuEpilogue::epilogue_sums(const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& center,
                                int64_t activation, const at::Tensor& sum_dy, const at::Tensor& sum_dy_act) {
  dispatch_floating(z.scalar_type(), "depthwise_conv2d", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_of<scalar_t>;
    const Matrix matrix(z);
    const at::Tensor even = matrix.even(z), gradient = matrix.even(dy);
    const auto centers = padded_parameter<scalar_t>(center, z.size(1), 0);
    select_isa(&baseline::epilogue_sums<scalar_t>, &avx2::epilogue_sums<scalar_t>, &avx512::epilogue_sums<scalar_t>,
               &avx512_bf16::epilogue_sums<scalar_t>)({matrix,
                                                       {matrix, gradient},
                                                       {matrix, even},
                                                       centers.get(),
                                                       static_cast<Activation>(activation),
                                                       sum_dy.mutable_data_ptr<acc_t>(),
                                                       sum_dy_act.mutable_data_ptr<acc_t>()});
  });
}

void CpuEpilogue::epilogue_backward(const at::Tensor& dy, const at::Tensor& z, const OptionalTensor& c0,
                                    const OptionalTensor& c1, const OptionalTensor& c2, int64_t activation,
                                    const at::Tensor& dz) {
  dispatch_floating(z.scalar_type(), "depthwise_conv2d", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Matrix matrix(dz);
    const at::Tensor even = matrix.even(z), gradient = matrix.even(dy);
    const auto of_dy = padded_parameter<scalar_t>(c0, z.size(1), 1);
    const auto of_act = padded_parameter<scalar_t>(c1, z.size(1), 0);
    const auto constant = padded_parameter<scalar_t>(c2, z.size(1), 0);
    select_isa(&baseline::epilogue_backward<scalar_t>, &avx2::epilogue_backward<scalar_t>,
               &avx512::epilogue_backward<scalar_t>,
               &avx512_bf16::epilogue_backward<scalar_t>)({matrix,
                                                           {matrix, gradient},
                                                           {matrix, even},
                                                           of_dy.get(),
                                                           of_act.get(),
                                                           constant.get(),
                                                           c1.has_value(),
                                                           static_cast<Activation>(activation),
                                                           {matrix, dz}});
  });
}

}  // namespace mixer_kernels
