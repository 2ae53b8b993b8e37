// Depthwise convolution on the CPU with channels side by side in the lanes of a vector: every tap is one vector of
// weights, every pixel one vector of inputs, whatever the sizes, the stride and the dilation are. A task is a tile of
// pixels of one image and block of channels; its inputs are gathered into a zero-padded scratch tile first, from either
// memory format, so that the loops over taps neither check borders nor convert.
// Compiled once for each instruction set by foreach_isa.h, inside a namespace: no include guard.

#include "common/vector_simd.h"
// It builds on that one, and the next one on it.
#include "common/tile_gemm_simd.h"
// Activations.
#include "common/math_simd.h"

// Pixels (or taps) that one step of the loops holds in registers, in two rows: 24 accumulators of 32 registers, 12
// of 16.
constexpr int kBlockPixels = kVectorBytes == 64 ? 12 : 6;

template <typename scalar_t>
TileGrid grid_of(const Correlation<scalar_t>& c) {
  return {c.batch, c.channels, c.group * kLanes<acc_type<scalar_t>>, c.out, c.tile};
}

// Calls f(block, part) for the parts of a tile that are a vector of channels wide.
template <typename scalar_t, typename F>
void for_channel_blocks(const TileOfMap& tile, const F& f) {
  constexpr int64_t lanes = kLanes<acc_type<scalar_t>>;
  TileOfMap part = tile;
  for (int64_t block = 0; block * lanes < tile.channels; ++block) {
    part.channel = tile.channel + block * lanes;
    part.channels = std::min(lanes, tile.channels - block * lanes);
    f(block, part);
  }
}

// `pixels` pixels of a row, the channels of a block side by side, as accumulators; zeros behind the last channel.
template <typename scalar_t>
void load_pixels(const Map<const scalar_t>& map, const scalar_t* from, int64_t channels, int64_t pixels,
                 acc_type<scalar_t>* to) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  if (map.channel_step == 1 && channels == lanes) {
    const int64_t step = map.column_step;
    for (int64_t p = 0; p < pixels; ++p) store(to + p * lanes, load_as_acc(from + p * step));
    return;
  }
  if (map.column_step == 1 && pixels >= lanes) {
    for (int64_t next = 0; next < pixels; next += lanes) {
      // The last square may overlap the one before it.
      const int64_t p = std::min(next, pixels - lanes);
      Vector<acc_t> square[lanes];
      for (int64_t c = 0; c < lanes; ++c) {
        square[c] = c < channels ? load_as_acc(from + c * map.channel_step + p) : Vector<acc_t>{};
      }
      transpose_square<1, acc_t>(square);
      for (int64_t i = 0; i < lanes; ++i) store(to + (p + i) * lanes, square[i]);
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      to[p * lanes + c] = static_cast<acc_t>(from[c * map.channel_step + p * map.column_step]);
    }
    std::fill(to + p * lanes + channels, to + (p + 1) * lanes, acc_t(0));
  }
}

// The way back; `map` is dense. streamed: past the caches.
template <typename scalar_t>
void store_pixels(const acc_type<scalar_t>* from, int64_t channels, int64_t pixels, const Map<scalar_t>& map,
                  scalar_t* to, bool streamed) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  if (map.channel_step == 1 && channels == lanes) {
    const int64_t step = map.column_step;
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (streamed) {
        for (int64_t p = 0; p < pixels; ++p) stream(to + p * step, load(from + p * lanes));
        return;
      }
    }
    for (int64_t p = 0; p < pixels; ++p) store_acc(to + p * step, load(from + p * lanes));
    return;
  }
  if (map.column_step == 1 && pixels >= lanes) {
    for (int64_t next = 0; next < pixels; next += lanes) {
      const int64_t p = std::min(next, pixels - lanes);
      Vector<acc_t> square[lanes];
      for (int64_t i = 0; i < lanes; ++i) square[i] = load(from + (p + i) * lanes);
      transpose_square<1, acc_t>(square);
      for (int64_t c = 0; c < channels; ++c) store_acc(to + c * map.channel_step + p, square[c]);
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      to[c * map.channel_step + p * map.column_step] = static_cast<scalar_t>(from[p * lanes + c]);
    }
  }
}

// A zero-padded tile of a block of channels: pixels in rows, as units of a product. A unit of two elements holds a
// pixel and the one `pair_step` columns behind it. Columns lie in `phases` runs, column q at q / phases of run q %
// phases, so that the steps of a stride or of a dilation are neighbours.
template <typename scalar_t, typename operand_t>
class PaddedTile {
 public:
  using acc_t = acc_type<scalar_t>;
  using unit_t = unit_type<operand_t>;
  static constexpr int64_t lanes = kLanes<acc_t>;

  PaddedTile(int64_t rows, int64_t columns, int64_t phases, int64_t pair_step)
      : columns_(columns),
        phases_(phases),
        run_((columns + phases - 1) / phases),
        pair_step_(kUnitDepth<operand_t> == 2 ? pair_step : 0),
        units_(rows * phases * run_ * lanes),
        natural_((columns + pair_step_) * lanes),
        few_(columns * lanes) {}

  // In units.
  int64_t row_step() const { return phases_ * run_ * lanes; }
  int64_t offset(int64_t column) const { return (column % phases_ * run_ + column / phases_) * lanes; }
  const unit_t* row(int64_t index) const { return units_.get() + index * row_step(); }

  // Fills row `index` from (row, first_column) of a plane on, zeros outside of it. The plane is a map with spread - 1
  // zeros between its elements.
  void fill(int64_t index, const Map<const scalar_t>& map, Extent size, Extent spread, const TileOfMap& tile,
            int64_t row, int64_t first_column) {
    unit_t* const to = units_.get() + index * row_step();
    if (row < 0 || row % spread.h != 0 || row / spread.h >= size.h) {
      std::fill_n(to, row_step(), unit_t(0));
      return;
    }
    const scalar_t* const from = map.pixel(tile.image, tile.channel, row / spread.h, 0);
    if constexpr (std::is_same_v<unit_t, acc_t>) {
      if (phases_ == 1) return fill_row(map, from, size.w, spread.w, tile.channels, first_column, to);
    }
    fill_row(map, from, size.w, spread.w, tile.channels, first_column, natural_.get());
    place(to);
  }

 private:
  // One row of the plane, `columns_` pixels of it, in their natural order.
  void fill_row(const Map<const scalar_t>& map, const scalar_t* from, int64_t width, int64_t spread, int64_t channels,
                int64_t first, acc_t* to) {
    const auto up = [&](int64_t column) { return column <= 0 ? 0 : (column + spread - 1) / spread; };
    const int64_t begin = std::min(up(first), width), end = std::clamp(up(first + columns_), begin, width);
    if (begin == end) {
      std::fill_n(to, columns_ * lanes, acc_t(0));
    } else if (spread == 1) {
      std::fill_n(to, (begin - first) * lanes, acc_t(0));
      load_pixels(map, from + begin * map.column_step, channels, end - begin, to + (begin - first) * lanes);
      std::fill(to + (end - first) * lanes, to + columns_ * lanes, acc_t(0));
    } else {
      load_pixels(map, from + begin * map.column_step, channels, end - begin, few_.get());
      std::fill_n(to, columns_ * lanes, acc_t(0));
      for (int64_t i = begin; i < end; ++i) {
        store(to + (i * spread - first) * lanes, load(few_.get() + (i - begin) * lanes));
      }
    }
  }

  // The natural row as units, in runs.
  void place(unit_t* to) {
    acc_t* const natural = natural_.get();
    std::fill_n(natural + columns_ * lanes, pair_step_ * lanes, acc_t(0));
    for (int64_t q = 0; q < columns_; ++q) {
      const Vector<acc_t> pixel = load(natural + q * lanes);
      if constexpr (kUnitDepth<operand_t> == 2) {
        store(to + offset(q), round_to_units<operand_t>(pixel, load(natural + (q + pair_step_) * lanes)));
      } else {
        store(to + offset(q), pixel);
      }
    }
  }

  int64_t columns_, phases_, run_, pair_step_;
  Scratch<unit_t> units_;
  Scratch<acc_t> natural_, few_;
};

// The inputs of a tile of outputs, for every block of channels of a task, row by row: in channels_last the blocks of a
// pixel are neighbours and pixels lie far apart, so that one block at a time would look up every pixel's page anew.
template <typename scalar_t, typename operand_t>
class TileGroup {
 public:
  TileGroup(const Correlation<scalar_t>& c, int64_t phases, int64_t pair_step) : c_(c) {
    for (int64_t block = 0; block < c.group; ++block) {
      tiles_.emplace_back(input_size(c.tile.h, c.stride.h, c.kernel.h, c.dilation.h),
                          input_size(c.tile.w, c.stride.w, c.kernel.w, c.dilation.w), phases, pair_step);
    }
  }

  const PaddedTile<scalar_t, operand_t>& operator[](int64_t block) const { return tiles_[block]; }

  void fill(const TileOfMap& tile) {
    const int64_t rows = input_size(tile.rows, c_.stride.h, c_.kernel.h, c_.dilation.h);
    const int64_t row = tile.row * c_.stride.h - c_.offset.h, column = tile.column * c_.stride.w - c_.offset.w;
    for (int64_t r = 0; r < rows; ++r) {
      for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
        tiles_[block].fill(r, c_.x, c_.in, c_.spread, part, row + r, column);
      });
    }
  }

 private:
  const Correlation<scalar_t>& c_;
  std::vector<PaddedTile<scalar_t, operand_t>> tiles_;
};

// The kernels of a block of channels, as units: (KH, taps, lanes), where a unit of two elements is two taps of a row.
// Of an odd number of taps the last unit repeats a pixel with weight zero, so that no pixel outside the kernel counts.
template <typename scalar_t, typename operand_t>
class KernelBlock {
 public:
  using acc_t = acc_type<scalar_t>;
  using unit_t = unit_type<operand_t>;
  static constexpr int64_t lanes = kLanes<acc_t>;

  explicit KernelBlock(const Correlation<scalar_t>& c)
      : c_(c), taps_(units<operand_t>(c.kernel.w)), units_(c.kernel.h * taps_ * lanes), natural_(2 * lanes) {}

  int64_t taps() const { return taps_; }
  // The column of the kernel where a unit begins.
  int64_t column(int64_t tap) const {
    return std::min(tap * kUnitDepth<operand_t>, c_.kernel.w - kUnitDepth<operand_t>);
  }
  const unit_t* row(int64_t index) const { return units_.get() + index * taps_ * lanes; }

  void fill(int64_t channel, int64_t channels) {
    unit_t* to = units_.get();
    for (int64_t kh = 0; kh < c_.kernel.h; ++kh) {
      for (int64_t tap = 0; tap < taps_; ++tap, to += lanes) {
        const int64_t kw = column(tap);
        const Vector<acc_t> first = weights(channel, channels, kh, kw);
        if constexpr (kUnitDepth<operand_t> == 2) {
          const bool repeated = kw < tap * 2;
          store(to,
                round_to_units<operand_t>(repeated ? Vector<acc_t>{} : first, weights(channel, channels, kh, kw + 1)));
        } else {
          store(to, first);
        }
      }
    }
  }

 private:
  Vector<acc_t> weights(int64_t channel, int64_t channels, int64_t kh, int64_t kw) {
    const int64_t taps = c_.kernel.h * c_.kernel.w, tap = kh * c_.kernel.w + kw;
    const scalar_t* const from = c_.weight + channel * taps + (c_.flipped ? taps - 1 - tap : tap);
    acc_t* const to = natural_.get();
    for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<acc_t>(from[c * taps]);
    std::fill(to + channels, to + lanes, acc_t(0));
    return load(to);
  }

  const Correlation<scalar_t>& c_;
  int64_t taps_;
  Scratch<unit_t> units_;
  Scratch<acc_t> natural_;
};

// Adds one row of inputs, under one row of the kernel for the upper row of outputs and under the one above it for the
// lower row of outputs.
template <typename operand_t, bool kUpper, bool kLower, int kRows, int kPixels>
__attribute__((always_inline)) inline void add_row(Vector<acc_type<operand_t>> (&acc)[kRows][kPixels],
                                                   const unit_type<operand_t>* x, const int64_t* offsets, int64_t taps,
                                                   const unit_type<operand_t>* weight) {
  constexpr int64_t lanes = kLanes<acc_type<operand_t>>;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const unit_type<operand_t>* in = x + offsets[tap];
    keep_in_register(in);
    UnitVector<operand_t> upper, lower;
    if constexpr (kUpper) upper = load(weight + tap * lanes);
    if constexpr (kLower) lower = load(weight + (tap - taps) * lanes);
    for (int p = 0; p < kPixels; ++p) {
      UnitVector<operand_t> pixel = load(in + p * lanes);
      if constexpr (kUpper && kLower) keep_in_register(pixel);
      if constexpr (kUpper) acc[0][p] = multiply_add<operand_t>(acc[0][p], pixel, upper);
      if constexpr (kLower) acc[kRows - 1][p] = multiply_add<operand_t>(acc[kRows - 1][p], pixel, lower);
    }
  }
}

// kPixels outputs of kRows rows under some rows of the kernel, added to `out` if `accumulate`. offsets: where the first
// output finds its inputs, for each tap of a row.
template <typename operand_t, int kRows, int kPixels>
void convolve_block(const unit_type<operand_t>* x, int64_t x_row, const int64_t* offsets, int64_t taps,
                    const unit_type<operand_t>* weight, int64_t kernel_rows, bool accumulate, acc_type<operand_t>* out,
                    int64_t out_row) {
  using acc_t = acc_type<operand_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  Vector<acc_t> acc[kRows][kPixels];
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPixels; ++p) acc[r][p] = Vector<acc_t>{};
  }
  // Two rows of outputs share the inputs of all but the first and the last of the rows that they read.
  add_row<operand_t, true, false>(acc, x, offsets, taps, weight);
  for (int64_t row = 1; row < kernel_rows; ++row) {
    add_row<operand_t, true, kRows == 2>(acc, x + row * x_row, offsets, taps, weight + row * taps * lanes);
  }
  if constexpr (kRows == 2) {
    add_row<operand_t, false, true>(acc, x + kernel_rows * x_row, offsets, taps, weight + kernel_rows * taps * lanes);
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPixels; ++p) {
      acc_t* const to = out + r * out_row + p * lanes;
      store(to, accumulate ? load(to) + acc[r][p] : acc[r][p]);
    }
  }
}

template <typename operand_t, int kRows, int... kIndex>
auto convolve_block_of(int64_t pixels, std::integer_sequence<int, kIndex...>) {
  using Block = decltype(&convolve_block<operand_t, kRows, 1>);
  static constexpr Block kAll[] = {&convolve_block<operand_t, kRows, kIndex + 1>...};
  return kAll[pixels - 1];
}

constexpr auto kAllBlocks = std::make_integer_sequence<int, kBlockPixels>{};

// Calls f(first, size) for blocks of at most kBlockPixels, as even as they can be.
template <typename F>
void for_blocks(int64_t size, const F& f) {
  const int64_t blocks = (size + kBlockPixels - 1) / kBlockPixels;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * size / blocks;
    f(first, (block + 1) * size / blocks - first);
  }
}

// The outputs of one tile, as accumulators.
template <typename scalar_t, typename operand_t>
class LaneConvolution {
 public:
  using acc_t = acc_type<scalar_t>;
  static constexpr int64_t lanes = kLanes<acc_t>;

  explicit LaneConvolution(const Correlation<scalar_t>& c) : c_(c), x_(c, c.stride.w, c.dilation.w) {
    for (int64_t block = 0; block < c.group; ++block) kernels_.emplace_back(c);
    for (int64_t tap = 0; tap < kernels_[0].taps(); ++tap) {
      offsets_.push_back(x_[0].offset(kernels_[0].column(tap) * c.dilation.w));
    }
  }

  void set_channels(const TileOfMap& tile) {
    for_channel_blocks<scalar_t>(
        tile, [&](int64_t block, const TileOfMap& part) { kernels_[block].fill(part.channel, part.channels); });
  }

  void set_inputs(const TileOfMap& tile) { x_.fill(tile); }

  // The outputs of one block of channels: (rows, columns, lanes).
  void run(int64_t block, const TileOfMap& tile, acc_t* out) const {
    const KernelBlock<scalar_t, operand_t>& kernel = kernels_[block];
    const PaddedTile<scalar_t, operand_t>& inputs = x_[block];
    const int64_t rows_of_sum = std::max<int64_t>(1, kLongestSum / kernel.taps());
    const int64_t parts = (c_.kernel.h + rows_of_sum - 1) / rows_of_sum;
    const bool two = c_.stride.h == 1 && c_.dilation.h == 1;
    for (int64_t row = 0; row < tile.rows;) {
      const int64_t rows = two && row + 1 < tile.rows ? 2 : 1;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t kh = part * c_.kernel.h / parts, end = (part + 1) * c_.kernel.h / parts;
        const auto* const x = inputs.row(row * c_.stride.h + kh * c_.dilation.h);
        for_blocks(tile.columns, [&](int64_t column, int64_t pixels) {
          const auto convolve = rows == 2 ? convolve_block_of<operand_t, 2>(pixels, kAllBlocks)
                                          : convolve_block_of<operand_t, 1>(pixels, kAllBlocks);
          convolve(x + column * lanes, c_.dilation.h * inputs.row_step(), offsets_.data(), kernel.taps(),
                   kernel.row(kh), end - kh, part > 0, out + (row * tile.columns + column) * lanes,
                   tile.columns * lanes);
        });
      }
      row += rows;
    }
  }

 private:
  const Correlation<scalar_t>& c_;
  TileGroup<scalar_t, operand_t> x_;
  std::vector<KernelBlock<scalar_t, operand_t>> kernels_;
  std::vector<int64_t> offsets_;
};

// y = residual + scale * v + shift for a row of a tile's accumulators.
template <typename scalar_t>
void store_outputs(const TileOfMap& tile, int64_t row, const acc_type<scalar_t>* values, const Epilogue<scalar_t>& e,
                   const Map<scalar_t>& y, bool streamed, acc_type<scalar_t>* room) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const Vector<acc_t> factor = load(e.scale + tile.channel), summand = load(e.shift + tile.channel);
  const bool alone = e.residual.data == nullptr;
  if (!alone) {
    const auto* const from = e.residual.pixel(tile.image, tile.channel, tile.row + row, tile.column);
    load_pixels(e.residual, from, tile.channels, tile.columns, room);
  }
  for (int64_t i = 0; i < tile.columns * lanes; i += lanes) {
    const Vector<acc_t> v = load(values + i) * factor + summand;
    store(room + i, alone ? v : load(room + i) + v);
  }
  store_pixels(room, tile.channels, tile.columns, y, y.pixel(tile.image, tile.channel, tile.row + row, tile.column),
               streamed);
}

// sums[lane] += the sum of f(pixel): short sums in the accumulator's type, the rest in float64.
template <typename acc_t, typename F>
void add_pixels(int64_t pixels, const F& f, double* sums) {
  constexpr int64_t lanes = kLanes<acc_t>, kFew = 16;
  for (int64_t first = 0; first < pixels; first += kFew) {
    Vector<acc_t> few{};
    for (int64_t p = first; p < std::min(first + kFew, pixels); ++p) few += f(p);
    for (int64_t lane = 0; lane < lanes; ++lane) sums[lane] += few[lane];
  }
}

// Mean and sum of squared deviations of a tile, for each lane.
template <typename acc_t>
void tile_moments(const acc_t* values, int64_t pixels, double* mean, double* deviations) {
  constexpr int64_t lanes = kLanes<acc_t>;
  const auto value = [&](int64_t p) { return load(values + p * lanes); };
  std::fill_n(mean, lanes, 0.0);
  add_pixels<acc_t>(pixels, value, mean);
  Vector<acc_t> center;
  for (int64_t lane = 0; lane < lanes; ++lane) {
    mean[lane] /= static_cast<double>(pixels);
    center[lane] = static_cast<acc_t>(mean[lane]);
  }
  const auto square = [&](int64_t p) { return (value(p) - center) * (value(p) - center); };
  std::fill_n(deviations, lanes, 0.0);
  add_pixels<acc_t>(pixels, square, deviations);
}

template <typename scalar_t, typename operand_t>
void convolve_lanes(const Correlation<scalar_t>& c, const Epilogue<scalar_t>& e, const Map<scalar_t>& y,
                    const Moments& moments) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const TileGrid grid = grid_of(c);
  // A large map would leave the caches anyway before somebody reads it.
  constexpr int64_t kLarge = int64_t{4} << 20;
  const bool streamed = y.channel_step == 1 && reinterpret_cast<uintptr_t>(y.data) % kVectorBytes == 0 &&
                        y.column_step * sizeof(scalar_t) % kVectorBytes == 0 &&
                        c.batch * c.channels * c.out.h * c.out.w * static_cast<int64_t>(sizeof(scalar_t)) >= kLarge;
  at::parallel_for(0, grid.tasks(), 1, [&](int64_t begin, int64_t end) {
    LaneConvolution<scalar_t, operand_t> convolution(c);
    const int64_t size = c.tile.h * c.tile.w * lanes;
    Scratch<acc_t> values(c.group * size), room(c.tile.w * lanes);
    for (int64_t index = begin; index < end; ++index) {
      const TileOfMap tile = grid[index];
      const int64_t pixels = tile.rows * tile.columns;
      if (index == begin || grid.begins_block(index)) convolution.set_channels(tile);
      convolution.set_inputs(tile);
      for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
        acc_t* const out = values.get() + block * size;
        convolution.run(block, part, out);
        if (e.bias != nullptr) {
          // Last: a sum that begins with it is rounded at its size.
          const Vector<acc_t> bias = load(e.bias + part.channel);
          for (int64_t i = 0; i < pixels * lanes; i += lanes) store(out + i, load(out + i) + bias);
        }
        if (moments.mean == nullptr && e.activation != Activation::kNone) {
          activate<scalar_t>(e.activation, BiasedRows<acc_t>{out, nullptr, pixels, lanes});
        }
      });
      for (int64_t row = 0; row < tile.rows; ++row) {
        for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
          store_outputs(part, row, values.get() + block * size + row * tile.columns * lanes, e, y, streamed,
                        room.get());
        });
      }
      if (moments.mean == nullptr) continue;
      for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap&) {
        acc_t* const out = values.get() + block * size;
        activate<scalar_t>(e.activation, BiasedRows<acc_t>{out, nullptr, pixels, lanes});
        const int64_t to = (index * c.group + block) * lanes;
        tile_moments(out, pixels, moments.mean + to, moments.deviations + to);
      });
    }
    if (streamed) end_of_stream();
  });
}

// Parallel over tiles of blocks of channels. moments: of the activation, one pair of vectors a task, or null.
template <typename scalar_t>
void depthwise_convolve(const Correlation<scalar_t>& c, const Epilogue<scalar_t>& e, const Map<scalar_t>& y,
                        const Moments& moments) {
  using operand_t = operand_type<scalar_t>;
  // A unit of two taps needs two. CPUs with AMX multiply pairs of bfloat16 no faster than they multiply float32.
  if (c.kernel.w < kUnitDepth<operand_t> || c.amx)
    return convolve_lanes<scalar_t, acc_type<scalar_t>>(c, e, y, moments);
  convolve_lanes<scalar_t, operand_t>(c, e, y, moments);
}

// Adds to kTaps taps of kRows rows of the kernel what some rows of dz give. offsets: where each unit of a row of dz
// finds the inputs under the first tap. Above the first and below the last row of dz are zeros.
template <typename operand_t, int kRows, int kTaps>
void correlate_block(const unit_type<operand_t>* x, int64_t x_row, const unit_type<operand_t>* dz, int64_t dz_row,
                     const int64_t* offsets, int64_t pixels, int64_t rows, acc_type<operand_t>* out, int64_t out_row) {
  using acc_t = acc_type<operand_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const int64_t rows_of_sum = std::max<int64_t>(1, kLongestSum / 2 / pixels);
  // The lower row of taps sees the inputs one row later.
  for (int64_t row = 0; row < rows + kRows - 1;) {
    const int64_t end = std::min(row + rows_of_sum, rows + kRows - 1);
    Vector<acc_t> acc[kRows][kTaps];
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTaps; ++t) acc[r][t] = Vector<acc_t>{};
    }
    for (; row < end; ++row) {
      for (int64_t i = 0; i < pixels; ++i) {
        const unit_type<operand_t>* in = x + row * x_row + offsets[i];
        keep_in_register(in);
        UnitVector<operand_t> d[kRows];
        for (int r = 0; r < kRows; ++r) d[r] = load(dz + (row - r) * dz_row + i * lanes);
        for (int t = 0; t < kTaps; ++t) {
          UnitVector<operand_t> pixel = load(in + t * lanes);
          if constexpr (kRows > 1) keep_in_register(pixel);
          for (int r = 0; r < kRows; ++r) acc[r][t] = multiply_add<operand_t>(acc[r][t], d[r], pixel);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTaps; ++t) {
        acc_t* const to = out + r * out_row + t * lanes;
        store(to, load(to) + acc[r][t]);
      }
    }
  }
}

template <typename operand_t, int kRows, int... kIndex>
auto correlate_block_of(int64_t taps, std::integer_sequence<int, kIndex...>) {
  using Block = decltype(&correlate_block<operand_t, kRows, 1>);
  static constexpr Block kAll[] = {&correlate_block<operand_t, kRows, kIndex + 1>...};
  return kAll[taps - 1];
}

// What a tile adds to the gradients of its channels: to dweight, (KH, KW, lanes) for each block of them, and to dbias,
// (lanes).
template <typename scalar_t, typename operand_t>
class LaneCorrelation {
 public:
  using acc_t = acc_type<scalar_t>;
  static constexpr int64_t lanes = kLanes<acc_t>;

  LaneCorrelation(const Correlation<scalar_t>& c, const Map<const scalar_t>& dz)
      : c_(c),
        dz_map_(dz),
        pixels_(units<operand_t>(c.tile.w)),
        dz_row_(pixels_ * lanes),
        dz_size_((c.tile.h + 2) * dz_row_),
        x_(c, c.dilation.w, c.stride.w),
        dz_(c.group * dz_size_),
        natural_(kUnitDepth<operand_t> * dz_row_) {
    for (int64_t i = 0; i < pixels_; ++i) offsets_.push_back(x_[0].offset(i * kUnitDepth<operand_t> * c.stride.w));
  }

  void add(const TileOfMap& tile, acc_t* dweight, double* dbias) {
    x_.fill(tile);
    for (int64_t row = -1; row <= tile.rows; ++row) {
      for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
        auto* const to = dz_.get() + block * dz_size_ + (row + 1) * dz_row_;
        if (row < 0 || row == tile.rows) {
          std::fill_n(to, dz_row_, unit_type<operand_t>(0));
        } else {
          fill_dz(part, row, to, dbias + block * lanes);
        }
      });
    }
    for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
      correlate(block, part, dweight + block * c_.kernel.h * c_.kernel.w * lanes);
    });
  }

 private:
  void fill_dz(const TileOfMap& tile, int64_t row, unit_type<operand_t>* to, double* dbias) {
    acc_t* const natural = natural_.get();
    load_pixels(dz_map_, dz_map_.pixel(tile.image, tile.channel, tile.row + row, tile.column), tile.channels,
                tile.columns, natural);
    std::fill(natural + tile.columns * lanes, natural + kUnitDepth<operand_t> * dz_row_, acc_t(0));
    add_pixels<acc_t>(tile.columns, [&](int64_t i) { return load(natural + i * lanes); }, dbias);
    for (int64_t i = 0; i < pixels_; ++i, to += lanes) {
      if constexpr (kUnitDepth<operand_t> == 2) {
        store(to, round_to_units<operand_t>(load(natural + 2 * i * lanes), load(natural + (2 * i + 1) * lanes)));
      } else {
        store(to, load(natural + i * lanes));
      }
    }
  }

  void correlate(int64_t block, const TileOfMap& tile, acc_t* dweight) const {
    const PaddedTile<scalar_t, operand_t>& inputs = x_[block];
    const auto* const dz = dz_.get() + block * dz_size_ + dz_row_;
    const bool two = c_.stride.h == 1 && c_.dilation.h == 1;
    for (int64_t kh = 0; kh < c_.kernel.h;) {
      const int64_t rows = two && kh + 1 < c_.kernel.h ? 2 : 1;
      for_blocks(c_.kernel.w, [&](int64_t kw, int64_t taps) {
        const auto correlate = rows == 2 ? correlate_block_of<operand_t, 2>(taps, kAllBlocks)
                                         : correlate_block_of<operand_t, 1>(taps, kAllBlocks);
        correlate(inputs.row(kh * c_.dilation.h) + kw * lanes, c_.stride.h * inputs.row_step(), dz, dz_row_,
                  offsets_.data(), units<operand_t>(tile.columns), tile.rows, dweight + (kh * c_.kernel.w + kw) * lanes,
                  c_.kernel.w * lanes);
      });
      kh += rows;
    }
  }

  const Correlation<scalar_t>& c_;
  const Map<const scalar_t>& dz_map_;
  int64_t pixels_, dz_row_, dz_size_;
  TileGroup<scalar_t, operand_t> x_;
  Scratch<unit_type<operand_t>> dz_;
  Scratch<acc_t> natural_;
  std::vector<int64_t> offsets_;
};

template <typename scalar_t, typename operand_t>
void correlate_lanes(const Correlation<scalar_t>& c, const Map<const scalar_t>& dz, scalar_t* dweight,
                     scalar_t* dbias) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const TileGrid grid = grid_of(c);
  const int64_t taps = c.kernel.h * c.kernel.w, tasks = grid.tasks_of_block();
  const int64_t size = grid.block() * taps;
  const int64_t parts = std::clamp<int64_t>(2 * at::get_num_threads() / grid.blocks(), 1, tasks);
  const Scratch<acc_t> sums(grid.blocks() * parts * size);
  const Scratch<double> bias_sums(grid.blocks() * parts * grid.block());
  std::fill_n(bias_sums.get(), grid.blocks() * parts * grid.block(), 0.0);
  at::parallel_for(0, grid.blocks() * parts, 1, [&](int64_t begin, int64_t end) {
    LaneCorrelation<scalar_t, operand_t> correlation(c, dz);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t block = index / parts, part = index % parts;
      std::fill_n(sums.get() + index * size, size, acc_t(0));
      for (int64_t task = part * tasks / parts; task < (part + 1) * tasks / parts; ++task) {
        correlation.add(grid[block * tasks + task], sums.get() + index * size, bias_sums.get() + index * grid.block());
      }
    }
  });
  at::parallel_for(0, c.channels, rows_per_task(taps * parts), [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      const int64_t of_task = channel % grid.block(), lane = channel % lanes;
      const int64_t first = channel / grid.block() * parts, last = first + parts;
      for (int64_t tap = 0; tap < taps; ++tap) {
        acc_t total = 0;
        for (int64_t part = first; part < last; ++part) {
          total += sums.get()[part * size + (of_task / lanes * taps + tap) * lanes + lane];
        }
        dweight[channel * taps + tap] = static_cast<scalar_t>(total);
      }
      double total = 0;
      for (int64_t part = first; part < last; ++part) total += bias_sums.get()[part * grid.block() + of_task];
      dbias[channel] = static_cast<scalar_t>(static_cast<acc_t>(total));
    }
  });
}

// Parallel over groups of channels and, where those are few, over parts of their tiles, which are then added in order.
template <typename scalar_t>
void depthwise_weight_gradient(const Correlation<scalar_t>& c, const Map<const scalar_t>& dz, scalar_t* dweight,
                               scalar_t* dbias) {
  if (c.amx) return correlate_lanes<scalar_t, acc_type<scalar_t>>(c, dz, dweight, dbias);
  correlate_lanes<scalar_t, operand_type<scalar_t>>(c, dz, dweight, dbias);
}
