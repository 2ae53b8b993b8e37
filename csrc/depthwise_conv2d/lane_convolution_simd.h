// The convolution itself, and the gradient of its input: outputs of a tile in registers, taps one after another.
// Compiled once for each instruction set by foreach_isa.h after lane_tiles_simd.h, inside a namespace.

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

// The outputs of one tile, as accumulators.
template <typename scalar_t, typename operand_t>
class LaneConvolution {
 public:
  using acc_t = acc_type<scalar_t>;
  static constexpr int64_t lanes = kLanes<acc_t>;

  explicit LaneConvolution(const Correlation<scalar_t>& c) : c_(c), x_(c, c.stride.w, c.dilation.w) {
    for (int64_t block = 0; block < blocks_of_task(c); ++block) kernels_.emplace_back(c);
    for (int64_t tap = 0; tap < kernels_[0].taps(); ++tap) {
      offsets_.push_back(x_[0].offset(kernels_[0].column(tap) * c.dilation.w));
    }
  }

  void set_channels(const TileOfMap& tile) {
    for_channel_blocks<scalar_t>(
        tile, [&](int64_t block, const TileOfMap& part) { kernels_[block].fill(part.channel, part.channels); });
  }

  void set_inputs(const TileOfMap& tile) { x_.fill(tile); }

  // Rows of outputs that are made at once: two share the inputs of all but the first and the last of the rows they
  // read.
  int64_t step() const { return c_.stride.h == 1 && c_.dilation.h == 1 ? 2 : 1; }

  // One or two rows of the outputs of one block of channels, from row `row` on: (rows, columns, lanes).
  void run(int64_t block, const TileOfMap& tile, int64_t row, int64_t rows, acc_t* out) const {
    const KernelBlock<scalar_t, operand_t>& kernel = kernels_[block];
    const PaddedTile<scalar_t, operand_t>& inputs = x_[block];
    const int64_t rows_of_sum = std::max<int64_t>(1, kLongestSum / kernel.taps());
    const int64_t parts = (c_.kernel.h + rows_of_sum - 1) / rows_of_sum;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t kh = part * c_.kernel.h / parts, end = (part + 1) * c_.kernel.h / parts;
      const auto* const x = inputs.row(row * c_.stride.h + kh * c_.dilation.h);
      for_blocks(tile.columns, [&](int64_t column, int64_t pixels) {
        const auto convolve = rows == 2 ? convolve_block_of<operand_t, 2>(pixels, kAllBlocks)
                                        : convolve_block_of<operand_t, 1>(pixels, kAllBlocks);
        convolve(x + column * lanes, c_.dilation.h * inputs.row_step(), offsets_.data(), kernel.taps(), kernel.row(kh),
                 end - kh, part > 0, out + column * lanes, tile.columns * lanes);
      });
    }
  }

 private:
  const Correlation<scalar_t>& c_;
  TileGroup<scalar_t, operand_t> x_;
  std::vector<KernelBlock<scalar_t, operand_t>> kernels_;
  std::vector<int64_t> offsets_;
};

// The epilogue of a row of a tile's accumulators.
template <typename scalar_t>
void store_outputs(const TileOfMap& tile, int64_t row, const acc_type<scalar_t>* values, const Epilogue<scalar_t>& e,
                   Activation activation, const Map<scalar_t>& y, bool streamed, acc_type<scalar_t>* room) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  // The bias last: a sum that begins with it is rounded at its size.
  const Vector<acc_t> bias = e.bias == nullptr ? Vector<acc_t>{} : load(e.bias + tile.channel);
  const Vector<acc_t> factor = load(e.scale + tile.channel), summand = load(e.shift + tile.channel);
  const bool alone = e.residual.data == nullptr;
  if (!alone) {
    const auto* const from = e.residual.pixel(tile.image, tile.channel, tile.row + row, tile.column);
    load_pixels(e.residual, from, tile.channels, tile.columns, room);
  }
  scalar_t* const to = y.pixel(tile.image, tile.channel, tile.row + row, tile.column);
  const bool direct = y.channel_step == 1 && tile.channels == lanes;
  with_activation<scalar_t, acc_t>(activation, [&](const auto& act) {
    for (int64_t p = 0; p < tile.columns; ++p) {
      Vector<acc_t> v = act(load(values + p * lanes) + bias) * factor + summand;
      if (!alone) v += load(room + p * lanes);
      if (!direct) {
        store(room + p * lanes, v);
      } else if constexpr (std::is_same_v<scalar_t, acc_t>) {
        streamed ? stream(to + p * y.column_step, v) : store(to + p * y.column_step, v);
      } else {
        store_acc(to + p * y.column_step, v);
      }
    }
  });
  if (!direct) store_pixels(room, tile.channels, tile.columns, y, to);
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

// Parallel over tiles of blocks of channels.
template <typename scalar_t, typename operand_t>
void convolve_lanes(const Correlation<scalar_t>& c, const Epilogue<scalar_t>& e, const Map<scalar_t>& y,
                    const Moments& moments) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const TileGrid grid = lane_grid(c);
  const int64_t group = blocks_of_task(c);
  const Activation activation = moments.mean == nullptr ? e.activation : Activation::kNone;
  const bool streamed = is_streamed(c) && y.channel_step == 1 &&
                        reinterpret_cast<uintptr_t>(y.data) % kVectorBytes == 0 &&
                        y.column_step * sizeof(scalar_t) % kVectorBytes == 0;
  at::parallel_for(0, grid.tasks(), 1, [&](int64_t begin, int64_t end) {
    LaneConvolution<scalar_t, operand_t> convolution(c);
    const int64_t size = c.tile.h * c.tile.w * lanes;
    Scratch<acc_t> values(group * size), room(c.tile.w * lanes);
    for (int64_t index = begin; index < end; ++index) {
      const TileOfMap tile = grid[index];
      const int64_t pixels = tile.rows * tile.columns;
      if (index == begin || grid.begins_block(index)) convolution.set_channels(tile);
      convolution.set_inputs(tile);
      for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
        for (int64_t row = 0; row < tile.rows; row += convolution.step()) {
          const int64_t rows = std::min(convolution.step(), tile.rows - row);
          acc_t* const out = values.get() + block * size + row * tile.columns * lanes;
          convolution.run(block, part, row, rows, out);
          for (int64_t r = 0; r < rows; ++r) {
            store_outputs(part, row + r, out + r * tile.columns * lanes, e, activation, y, streamed, room.get());
          }
        }
      });
      if (moments.mean == nullptr) continue;
      for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
        acc_t* const out = values.get() + block * size;
        if (e.bias != nullptr) {
          const Vector<acc_t> bias = load(e.bias + part.channel);
          for (int64_t i = 0; i < pixels * lanes; i += lanes) store(out + i, load(out + i) + bias);
        }
        activate<scalar_t>(e.activation, BiasedRows<acc_t>{out, nullptr, pixels, lanes});
        const int64_t to = (index * group + block) * lanes;
        tile_moments(out, pixels, moments.mean + to, moments.deviations + to);
      });
    }
    if (streamed) end_of_stream();
  });
}
