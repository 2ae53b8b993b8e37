// The convolution itself, and the gradient of its input: outputs of a tile in registers, taps one after another.
// Compiled once for each instruction set by foreach_isa.h after lane_tiles_simd.h, inside a namespace.

// The kernels of a block of channels from `channel` on, as units: (taps, KH, lanes), where a unit of two elements is
// two taps of a row. natural: room for (KH, KW, lanes).
template <typename operand_t, typename scalar_t>
void load_kernels(const Correlation<scalar_t>& c, int64_t channel, unit_type<operand_t>* natural,
                  unit_type<operand_t>* to) {
  constexpr int64_t lanes = kLanes<acc_type<scalar_t>>;
  const int64_t taps = c.kernel.h * c.kernel.w;
  Map<const scalar_t> map;
  map.channel_step = taps;
  map.column_step = 1;
  load_pixels(map, c.weight + channel * taps, std::min(lanes, c.channels - channel), taps, natural);
  for_kernel_units<operand_t>(
      c, [&](int64_t index) { return load(natural + index * lanes); },
      [&](const UnitVector<operand_t>& unit) {
        store(to, unit);
        to += lanes;
      });
}

// Those of all channels: (blocks of channels, taps, KH, lanes).
template <typename scalar_t, typename operand_t>
class LaneKernels {
 public:
  using unit_t = unit_type<operand_t>;
  static constexpr int64_t lanes = kLanes<acc_type<scalar_t>>;

  explicit LaneKernels(const Correlation<scalar_t>& c)
      : rows_(c.kernel.h),
        taps_(units<operand_t>(c.kernel.w)),
        size_(rows_ * taps_ * lanes),
        units_((c.channels + lanes - 1) / lanes * size_) {
    at::parallel_for(0, (c.channels + lanes - 1) / lanes, rows_per_task(size_), [&](int64_t begin, int64_t end) {
      const Scratch<unit_t> room(c.kernel.h * c.kernel.w * lanes);
      for (int64_t block = begin; block < end; ++block) {
        load_kernels<operand_t>(c, block * lanes, room.get(), units_.get() + block * size_);
      }
    });
  }

  int64_t taps() const { return taps_; }
  // Of a block of channels from `channel` on.
  const unit_t* unit(int64_t channel, int64_t row, int64_t tap) const {
    return units_.get() + channel / lanes * size_ + (tap * rows_ + row) * lanes;
  }

 private:
  int64_t rows_, taps_, size_;
  Scratch<unit_t> units_;
};

// Where sums of a block of channels go. The bias last: a sum that begins with it is rounded at its size.
template <typename out_t>
struct LaneOutputs {
  // The steps apart: where compilers copy both as one vector, its load waits until all stores before it have left.
  int64_t row_step;
  out_t* data;
  int64_t column_step;
  Vector<acc_type<out_t>> bias;
};

// Asks for a line of inputs and for one of outputs. Inlined, as what calls it: compilers else drop it, for it computes
// nothing.
__attribute__((always_inline)) inline void ask_for(const char* x, const char* y) {
  // Into the second-level cache: pixels of a column would push each other out of the first.
  __builtin_prefetch(x, 0, 2);
  __builtin_prefetch(y, 1, 2);
}

// kBlockRows rows of kVectors outputs under kTaps rows of the kernel, added to `out` if `accumulate`. rows: of the
// inputs that are not padding. offsets: where the first output finds its inputs, for each tap of a row; weight: (taps,
// kernel_rows, lanes).
template <typename operand_t, typename out_t, int kTaps, int kVectors>
void convolve_lane_block(const unit_type<operand_t>* x, int64_t x_row, Range rows, const int64_t* offsets, Range taps,
                         const unit_type<operand_t>* weight, int64_t kernel_rows, bool accumulate,
                         const LaneOutputs<out_t>& out, const Ahead& x_ahead, const Ahead& y_ahead) {
  using acc_t = acc_type<operand_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  Vector<acc_t> acc[kBlockRows][kVectors];
  clear_block<acc_t>(acc);
  add_columns<operand_t, kTaps, kVectors>(
      taps, [&](int64_t tap) { return x + offsets[tap]; }, x_row, rows,
      [](const unit_type<operand_t>* in, int v) { return load(in + v * lanes); },
      [&](int64_t tap) { return weight + tap * kernel_rows * lanes; },
      [](const unit_type<operand_t>* column, int row) { return load(column + row * lanes); },
      [&](int64_t row, int p) __attribute__((always_inline)) { ask_for(x_ahead.at(row, p), y_ahead.at(row, p)); }, acc);
#pragma GCC unroll 8
  for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      out_t* const to = out.data + r * out.row_step + v * out.column_step;
      store_acc(to, (accumulate ? load_as_acc(to) + acc[r][v] : acc[r][v]) + out.bias);
    }
  }
}

template <typename operand_t, typename out_t, int... kIndex>
auto convolve_lane_block_of(int64_t taps, int64_t vectors, std::integer_sequence<int, kIndex...>) {
  static constexpr decltype(&convolve_lane_block<operand_t, out_t, 1, 1>) kAll[] = {
      &convolve_lane_block<operand_t, out_t, kIndex / kBlockVectors + 1, kIndex % kBlockVectors + 1>...};
  return kAll[(taps - 1) * kBlockVectors + vectors - 1];
}

// The same for one row of kPixels outputs, whatever the vertical steps are.
template <typename operand_t, int kPixels>
void convolve_lane_row(const unit_type<operand_t>* x, int64_t x_row, const int64_t* offsets, int64_t taps,
                       const unit_type<operand_t>* weight, int64_t kernel_rows, int64_t rows, bool accumulate,
                       acc_type<operand_t>* out) {
  using acc_t = acc_type<operand_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  Vector<acc_t> acc[kPixels];
#pragma GCC unroll 12
  for (int p = 0; p < kPixels; ++p) acc[p] = Vector<acc_t>{};
  for (int64_t row = 0; row < rows; ++row, x += x_row) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const unit_type<operand_t>* in = x + offsets[tap];
      const UnitVector<operand_t> w = load(weight + (tap * kernel_rows + row) * lanes);
#pragma GCC unroll 12
      for (int p = 0; p < kPixels; ++p) acc[p] = multiply_add<operand_t>(acc[p], load(in + p * lanes), w);
    }
  }
#pragma GCC unroll 12
  for (int p = 0; p < kPixels; ++p) store(out + p * lanes, accumulate ? load(out + p * lanes) + acc[p] : acc[p]);
}

template <typename operand_t, int... kIndex>
auto convolve_lane_row_of(int64_t pixels, std::integer_sequence<int, kIndex...>) {
  static constexpr decltype(&convolve_lane_row<operand_t, 1>) kAll[] = {&convolve_lane_row<operand_t, kIndex + 1>...};
  return kAll[pixels - 1];
}

// The outputs of one tile, as accumulators.
template <typename scalar_t, typename operand_t>
class LaneConvolution {
 public:
  using Kernels = LaneKernels<scalar_t, operand_t>;
  using acc_t = acc_type<scalar_t>;
  static constexpr int64_t lanes = kLanes<acc_t>;
  // Whether outputs may be elements of the map, not only accumulators.
  static constexpr bool kMakesElements = true;

  LaneConvolution(const Correlation<scalar_t>& c, const Kernels& kernels)
      : c_(c),
        kernels_(kernels),
        x_(c, {whole_steps(c, step(c)), c.tile.w}, c.stride.w, c.dilation.w, margin(c)),
        parts_(kernel_parts({c.kernel.h, kernels.taps()})) {
    for (int64_t tap = 0; tap < kernels.taps(); ++tap) {
      offsets_.push_back(x_[0].offset(unit_column<operand_t>(tap, c.kernel.w) * c.dilation.w));
    }
  }

  // Rows of outputs that are made at once.
  static int64_t step(const Correlation<scalar_t>& c) { return c.stride.h == 1 && c.dilation.h == 1 ? kBlockRows : 1; }

  // The inputs of a step of outputs from row `row` on; those of the step before it are there.
  void bring_inputs(const TileOfMap& tile, int64_t row) { x_.bring(tile, row, step(c_)); }

  // Whether every sum is one running sum.
  bool is_single() const { return parts_.size() == 1; }

  // A step of outputs of block `block` of a tile, its columns [begin, end) from row `row` on; out: of the first of
  // them, as accumulators or elements. next: the tile to come; y: what to ask for of outputs.
  template <typename out_t>
  void run(int64_t block, const TileOfMap& tile, int64_t row, int64_t begin, int64_t end, const LaneOutputs<out_t>& out,
           const TileOfMap& next, const LinesAhead& y) const {
    const PaddedTile<scalar_t, operand_t>& inputs = x_[block];
    const int64_t row_step = c_.dilation.h * inputs.row_step();
    const LinesAhead ahead = x_.ahead(next, block, row);
    const int64_t above = c_.offset.h - (tile.row + row) * c_.stride.h, height = c_.plane().h;
    for (const KernelPart& part : parts_) {
      const auto* const x = inputs.row(row * c_.stride.h + part.row * c_.dilation.h) + begin * lanes;
      const auto* const weight = kernels_.unit(tile.channel, part.row, part.column);
      const int64_t* const offsets = offsets_.data() + part.column;
      const bool accumulate = &part != &parts_.front();
      if constexpr (std::is_same_v<out_t, acc_t>) {
        if (step(c_) == 1) {
          for_blocks(end - begin, [&](int64_t p, int64_t pixels) {
            convolve_lane_row_of<operand_t>(pixels, kAllBlocks)(x + p * lanes, row_step, offsets, part.columns, weight,
                                                                c_.kernel.h, part.rows, accumulate,
                                                                out.data + p * lanes);
          });
          continue;
        }
      }
      for (int64_t p = 0; p < end - begin; p += kBlockVectors) {
        const int64_t vectors = std::min<int64_t>(kBlockVectors, end - begin - p);
        const int64_t column = tile.column + begin + p;
        convolve_lane_block_of<operand_t, out_t>(part.rows, vectors,
                                                 std::make_integer_sequence<int, kKernelRows * kBlockVectors>{})(
            x + p * lanes, row_step, {above - part.row, above - part.row + height}, offsets,
            taps_inside(part, column, column + vectors - 1), weight, c_.kernel.h, accumulate,
            {out.row_step, out.data + p * out.column_step, out.column_step,
             &part == &parts_.back() ? out.bias : Vector<acc_type<out_t>>{}},
            ahead.at(begin + p), y.at(begin + p));
      }
    }
  }

 private:
  // Of the zeros around a map, those that its outermost pixels bring along: blocks of outputs pass over the rest.
  static Extent margin(const Correlation<scalar_t>& c) {
    if (step(c) == 1) return {kWholeMargin, kWholeMargin};
    return {0, (kBlockVectors - 1) * c.stride.w + (kUnitDepth<operand_t> - 1) * c.dilation.w};
  }

  // The taps of a part of a row of the kernel under which outputs [first, last] of a row find more than padding.
  Range taps_inside(const KernelPart& part, int64_t first, int64_t last) const {
    const auto columns_to = [&](int64_t input) { return steps_to(input, c_.dilation.w); };
    const int64_t before = columns_to(c_.offset.w - last * c_.stride.w);
    const int64_t begin = before < c_.kernel.w ? before / kUnitDepth<operand_t> : kernels_.taps();
    const int64_t end = units<operand_t>(columns_to(c_.plane().w + c_.offset.w - first * c_.stride.w));
    const int64_t inside = std::clamp<int64_t>(begin - part.column, 0, part.columns);
    return {inside, std::clamp(end - part.column, inside, part.columns)};
  }

  const Correlation<scalar_t>& c_;
  const Kernels& kernels_;
  TileGroup<scalar_t, operand_t> x_;
  std::vector<KernelPart> parts_;
  std::vector<int64_t> offsets_;
};

// The epilogue of the accumulators of some pixels, rows `pitch` apart.
template <typename scalar_t>
void store_outputs(const TileOfMap& tile, const acc_type<scalar_t>* values, int64_t pitch, const Epilogue<scalar_t>& e,
                   Activation activation, const Map<scalar_t>& y, acc_type<scalar_t>* room) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  // The bias last: a sum that begins with it is rounded at its size.
  const Vector<acc_t> bias = e.bias == nullptr ? Vector<acc_t>{} : load(e.bias + tile.channel);
  const Vector<acc_t> factor = load(e.scale + tile.channel), summand = load(e.shift + tile.channel);
  const Map<const scalar_t>& residual = e.residual;
  const bool whole = tile.channels == lanes, direct = whole && y.channel_step == 1;
  const bool alone = residual.data == nullptr, near = whole && residual.channel_step == 1;
  // Rows without a gap are one.
  int64_t rows = tile.rows, columns = tile.columns;
  const auto is_dense = [&](const auto& map) {
    return map.data == nullptr || map.row_step == columns * map.column_step;
  };
  if (pitch == columns * lanes && is_dense(y) && is_dense(residual)) {
    columns *= rows;
    rows = 1;
  }
  with_activation<scalar_t, acc_t>(activation, [&](const auto& act) {
    for (int64_t row = 0; row < rows; ++row, values += pitch) {
      const scalar_t* const past =
          alone ? nullptr : residual.pixel(tile.image, tile.channel, tile.row + row, tile.column);
      if (!alone && !near) load_pixels(residual, past, tile.channels, columns, room);
      scalar_t* const to = y.pixel(tile.image, tile.channel, tile.row + row, tile.column);
      for (int64_t p = 0; p < columns; ++p) {
        Vector<acc_t> v = act(load(values + p * lanes) + bias) * factor + summand;
        if (!alone) v += near ? load_as_acc(past + p * residual.column_step) : load(room + p * lanes);
        direct ? store_acc(to + p * y.column_step, v) : store(room + p * lanes, v);
      }
      if (!direct) store_pixels(room, tile.channels, columns, y, to);
    }
  });
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
template <typename scalar_t, typename Convolution>
void convolve_lanes(const Correlation<scalar_t>& c, const Epilogue<scalar_t>& e, const Map<scalar_t>& y,
                    const Moments& moments) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const TileGrid grid = lane_grid(c);
  const typename Convolution::Kernels kernels(c);
  const int64_t group = blocks_of_task(c), step = Convolution::step(c);
  const bool kept = moments.mean != nullptr, across = y.channel_step == 1;
  const Activation activation = kept ? Activation::kNone : e.activation;
  const Map<scalar_t> lines = c.tile.h == c.out.h && c.tile.w == c.out.w ? lines_of<lanes>(y, c.out) : y;
  at::parallel_for(0, grid.tasks(), 1, [&](int64_t begin, int64_t end) {
    Convolution convolution(c, kernels);
    const bool single = convolution.is_single();
    // Sums of parts are added up in y where nothing is rounded there.
    const bool direct = across && step > 1 && (single || std::is_same_v<scalar_t, acc_t>) && !kept && e.is_only_bias();
    // Outputs leave soon after they are made, 4 KiB at a time, if that does not bring the weights of parts anew.
    const int64_t few = across && step > 1 && single ? 4096 / (kBlockRows * kVectorBytes) : c.tile.w;
    const int64_t size = whole_steps(c, step) * c.tile.w * lanes;
    const Scratch<acc_t> values(kept ? group * size : step * c.tile.w * lanes), room(step * c.tile.w * lanes);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t task = grid.by_image(index);
      const TileOfMap tile = grid[task], next = grid[grid.by_image(std::min(index + 1, end - 1))];
      for (int64_t row = 0; row < tile.rows; row += step) {
        convolution.bring_inputs(tile, row);
        const bool last = row + step >= tile.rows;
        const TileOfMap& soon = last ? next : tile;
        const int64_t soon_row = last ? 0 : row + step;
        for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
          TileOfMap made = part;
          made.row += row;
          made.rows = std::min(step, tile.rows - row);
          // Of the outputs of the next step, or, where they leave all at once, of this one.
          const LinesAhead y_ahead = Convolution::kMakesElements ? LinesAhead(lines, soon, block, soon_row, c.tile.w)
                                                                 : LinesAhead(lines, part, 0, row, c.tile.w);
          if constexpr (Convolution::kMakesElements) {
            if (direct && made.rows == step && made.channels == lanes) {
              scalar_t* const to = y.pixel(made.image, made.channel, made.row, made.column);
              const Vector<acc_t> bias = e.bias == nullptr ? Vector<acc_t>{} : load(e.bias + made.channel);
              const LaneOutputs<scalar_t> out = {y.row_step, to, y.column_step, bias};
              return convolution.run(block, part, row, 0, tile.columns, out, next, y_ahead);
            }
          }
          for (int64_t column = 0; column < tile.columns; column += few) {
            made.column = tile.column + column;
            made.columns = std::min(few, tile.columns - column);
            acc_t* const out = values.get() + (kept ? block * size + (row * tile.columns + column) * lanes : 0);
            const int64_t pitch = (kept ? tile.columns : made.columns) * lanes;
            convolution.run(block, part, row, column, column + made.columns,
                            LaneOutputs<acc_t>{pitch, out, lanes, Vector<acc_t>{}}, next, y_ahead);
            store_outputs(made, out, pitch, e, activation, y, room.get());
          }
        });
      }
      if (!kept) continue;
      const int64_t pixels = tile.rows * tile.columns;
      for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
        acc_t* const out = values.get() + block * size;
        const Vector<acc_t> bias = e.bias == nullptr ? Vector<acc_t>{} : load(e.bias + part.channel);
        activate_stored<scalar_t>(e.activation, out, pixels * lanes, bias);
        const int64_t to = (task * group + block) * lanes;
        tile_moments(out, pixels, moments.mean + to, moments.deviations + to);
      });
    }
  });
}
