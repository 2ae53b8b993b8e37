// Convolutions in float32 by minimal filtering with channels in the lanes: stride and dilation 1.
// Compiled once for each instruction set by foreach_isa.h after lane_convolution_simd.h, inside a namespace.

// The weights of each factor for all channels, without the first rows of the kernel: (blocks of channels, factors,
// groups of columns, rows, lanes).
template <typename scalar_t>
class WinogradKernels {
 public:
  static constexpr int64_t lanes = kLanes<float>;

  explicit WinogradKernels(const Correlation<scalar_t>& c, int64_t first_row = 0)
      : rows_(c.kernel.h - first_row),
        groups_(c.kernel.w),
        size_(kFactors * groups_.count() * rows_ * lanes),
        weights_((c.channels + lanes - 1) / lanes * size_) {
    at::parallel_for(0, (c.channels + lanes - 1) / lanes, rows_per_task(size_), [&](int64_t begin, int64_t end) {
      const int64_t taps = c.kernel.h * c.kernel.w * lanes;
      const Scratch<float> natural(taps), columns(taps);
      for (int64_t block = begin; block < end; ++block) {
        load_kernels<float>(c, block * lanes, natural.get(), columns.get());
        for_factor_weights(
            groups_, rows_,
            [&](int64_t column, int64_t row) {
              return load(columns.get() + (column * c.kernel.h + first_row + row) * lanes);
            },
            [&](Factor factor, int64_t group, int64_t row, const Vector<float>& weight) {
              store(weights_.get() + offset(block * lanes, factor, row, group), weight);
            });
      }
    });
  }

  const ColumnGroups& groups() const { return groups_; }
  int64_t rows() const { return rows_; }
  // Of a block of channels from `channel` on.
  std::array<const float*, kFactors> weights(int64_t channel) const {
    std::array<const float*, kFactors> weights;
    for (int factor = kSum; factor < kFactors; ++factor) {
      weights[factor] = weights_.get() + offset(channel, Factor(factor), 0, 0);
    }
    return weights;
  }

 private:
  int64_t offset(int64_t channel, Factor factor, int64_t row, int64_t group) const {
    return channel / lanes * size_ + ((factor * groups_.count() + group) * rows_ + row) * lanes;
  }

  int64_t rows_;
  ColumnGroups groups_;
  int64_t size_;
  Scratch<float> weights_;
};

// kBlockRows rows of kVectors pairs of outputs under kTaps rows of the kernel, some groups of each, added to `out` if
// `accumulate`. offsets: where the first pair finds its inputs, for each group; weight: (groups, kernel_rows, lanes)
// for each factor; columns: of the outputs that there are. The rest as in convolve_lane_block.
template <typename out_t, int kTaps, int kVectors>
void convolve_lane_pairs(const float* x, int64_t x_row, Range rows, const FactorGroups& groups, const int64_t* offsets,
                         const std::array<const float*, kFactors>& weight, int64_t kernel_rows, bool accumulate,
                         int64_t columns, const LaneOutputs<out_t>& out, const Ahead& x_ahead, const Ahead& y_ahead) {
  constexpr int64_t lanes = kLanes<float>;
  Vector<float> even[kBlockRows][kVectors], odd[kBlockRows][kVectors];
  convolve_pair_block<kTaps, kVectors>(
      groups, [&](Factor, int64_t group) { return x + offsets[group]; }, x_row, rows,
      [](Factor factor, const float* in, int v) {
        const auto d = [&](int column) { return load(in + (2 * v + column) * lanes); };
        if (factor == kSum) return d(1) + d(2);
        if (factor == kDifference) return d(2) - d(1);
        return factor == kEven ? d(0) - d(2) : d(1) - d(3);
      },
      [&](Factor factor, int64_t group) { return weight[factor] + group * kernel_rows * lanes; },
      [](const float* column, int row) { return load(column + row * lanes); },
      [&](int64_t row, int v) __attribute__((always_inline)) {
        for (int i = 0; i < 2; ++i) ask_for(x_ahead.at(row, 2 * v + i), y_ahead.at(row, 2 * v + i));
      },
      even, odd);
#pragma GCC unroll 8
  for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      out_t* const to = out.data + r * out.row_step + 2 * v * out.column_step;
      store_acc(to, (accumulate ? load_as_acc(to) + even[r][v] : even[r][v]) + out.bias);
      if (2 * v + 1 == columns) continue;
      out_t* const next = to + out.column_step;
      store_acc(next, (accumulate ? load_as_acc(next) + odd[r][v] : odd[r][v]) + out.bias);
    }
  }
}

template <typename out_t, int... kIndex>
auto convolve_lane_pairs_of(int64_t taps, int64_t vectors, std::integer_sequence<int, kIndex...>) {
  static constexpr decltype(&convolve_lane_pairs<out_t, 1, 1>) kAll[] = {
      &convolve_lane_pairs<out_t, kIndex / kPairVectors + 1, kIndex % kPairVectors + 1>...};
  return kAll[(taps - 1) * kPairVectors + vectors - 1];
}

// A step of outputs in the lanes, under some rows of a kernel.
class LanePairs {
 public:
  static constexpr int64_t lanes = kLanes<float>;
  // Columns of zeros around a map that a block reads where one of its pairs, or one column of a group, lies inside.
  static constexpr int64_t kMargin = 3 + 2 * (kPairVectors - 1);

  // width, offset: of the map, and where the kernel begins to the left of an output.
  LanePairs(const ColumnGroups& groups, int64_t rows, int64_t width, int64_t offset)
      : groups_(groups), rows_(rows), width_(width), offset_(offset), parts_(kernel_parts({rows, groups.count()})) {
    for (int64_t group = 0; group < groups.count(); ++group) offsets_.push_back(groups.column(group) * lanes);
  }

  bool is_single() const { return parts_.size() == 1; }

  // kBlockRows rows of outputs, their columns from `column` of the map on. x: where the first finds its inputs; rows:
  // of those, what is not padding; weight: (groups, rows, lanes) of each factor; x_ahead, y_ahead: what to ask for.
  template <typename out_t>
  void run(const float* x, int64_t x_row, Range rows, const std::array<const float*, kFactors>& weight, bool accumulate,
           int64_t column, int64_t columns, const LaneOutputs<out_t>& out, const LinesAhead& x_ahead,
           const LinesAhead& y_ahead) const {
    for (const KernelPart& part : parts_) {
      std::array<const float*, kFactors> of_part = weight;
      for (const float*& factor : of_part) factor += part.row * lanes;
      for (int64_t p = 0; p < columns; p += 2 * kPairVectors) {
        const int64_t width = std::min<int64_t>(2 * kPairVectors, columns - p);
        const FactorGroups groups(groups_, groups_inside(part, column + p, column + p + width - 1));
        convolve_lane_pairs_of<out_t>(part.rows, (width + 1) / 2,
                                      std::make_integer_sequence<int, kKernelRows * kPairVectors>{})(
            x + part.row * x_row + p * lanes, x_row, {rows.begin - part.row, rows.end - part.row}, groups,
            offsets_.data(), of_part, rows_, accumulate || &part != &parts_.front(), width,
            {out.row_step, out.data + p * out.column_step, out.column_step,
             &part == &parts_.back() ? out.bias : Vector<acc_type<out_t>>{}},
            x_ahead.at(p), y_ahead.at(p));
      }
    }
  }

 private:
  // The groups of a part of a row of the kernel under which outputs [first, last] of a row find more than padding.
  Range groups_inside(const KernelPart& part, int64_t first, int64_t last) const {
    Range inside = {part.column, part.column + part.columns};
    const auto is_left = [&](int64_t group) { return last + 2 + groups_.column(group) < offset_; };
    const auto is_right = [&](int64_t group) { return first + groups_.column(group) - offset_ >= width_; };
    while (inside.begin < inside.end && is_left(inside.begin)) ++inside.begin;
    while (inside.begin < inside.end && is_right(inside.end - 1)) --inside.end;
    return inside;
  }

  ColumnGroups groups_;
  int64_t rows_, width_, offset_;
  std::vector<KernelPart> parts_;
  std::vector<int64_t> offsets_;
};

// The outputs of one tile, as accumulators.
template <typename scalar_t>
class WinogradLanes {
 public:
  using Kernels = WinogradKernels<scalar_t>;
  static constexpr int64_t lanes = kLanes<float>;
  static constexpr bool kMakesElements = true;

  WinogradLanes(const Correlation<scalar_t>& c, const Kernels& kernels)
      : c_(c),
        kernels_(kernels),
        x_(c, {whole_steps(c, kBlockRows), (c.tile.w + 1) / 2 * 2}, 1, 0, {0, LanePairs::kMargin}),
        pairs_(kernels.groups(), c.kernel.h, c.in.w, c.offset.w) {}

  // Whether it takes less time than the plain sum.
  static bool pays(const Correlation<scalar_t>& c) {
    // Of inputs read twice and added up, in products. Cores of Intel, which are those that have AVX-512 and take no
    // pairs of bfloat16, or AMX instead, make additions in the units of multiply-adds, and wait for their sums.
    const bool is_intel = kVectorBytes == 64 && (!kHasBf16Dot || c.amx);
    const int64_t cost = is_intel ? 150 : kVectorBytes == 64 ? 20 : 40;
    const int64_t pairs = (c.tile.w + 1) / 2, more = c.kernel.h * c.kernel.w * (2 * pairs - c.tile.w);
    return pairs * saved_products(c.kernel) - more >= cost * pairs;
  }

  static int64_t step(const Correlation<scalar_t>&) { return kBlockRows; }

  void bring_inputs(const TileOfMap& tile, int64_t row) { x_.bring(tile, row, kBlockRows); }

  bool is_single() const { return pairs_.is_single(); }

  // As that of LaneConvolution.
  template <typename out_t>
  void run(int64_t block, const TileOfMap& tile, int64_t row, int64_t begin, int64_t end, const LaneOutputs<out_t>& out,
           const TileOfMap& next, const LinesAhead& y) const {
    const int64_t above = c_.offset.h - (tile.row + row);
    pairs_.run(x_[block].row(row) + begin * lanes, x_[block].row_step(), {above, above + c_.in.h},
               kernels_.weights(tile.channel), false, tile.column + begin, end - begin, out,
               x_.ahead(next, block, row).moved(0, begin), y.moved(0, begin));
  }

 private:
  const Correlation<scalar_t>& c_;
  const Kernels& kernels_;
  TileGroup<scalar_t, float> x_;
  LanePairs pairs_;
};
