// Convolutions in float32 by minimal filtering with channels in the lanes: stride and dilation 1.
// Compiled once for each instruction set by foreach_isa.h after lane_convolution_simd.h, inside a namespace.

// The weights of each factor for all channels: (blocks of channels, factors, groups of columns, KH, lanes).
template <typename scalar_t>
class WinogradKernels {
 public:
  static constexpr int64_t lanes = kLanes<float>;

  explicit WinogradKernels(const Correlation<scalar_t>& c)
      : rows_(c.kernel.h),
        groups_(c.kernel.w),
        size_(kFactors * groups_.count() * rows_ * lanes),
        weights_((c.channels + lanes - 1) / lanes * size_) {
    at::parallel_for(0, (c.channels + lanes - 1) / lanes, rows_per_task(size_), [&](int64_t begin, int64_t end) {
      const int64_t taps = rows_ * c.kernel.w * lanes;
      const Scratch<float> natural(taps), columns(taps);
      for (int64_t block = begin; block < end; ++block) {
        load_kernels<float>(c, block * lanes, natural.get(), columns.get());
        for_factor_weights(
            groups_, rows_,
            [&](int64_t column, int64_t row) { return load(columns.get() + (column * rows_ + row) * lanes); },
            [&](Factor factor, int64_t group, int64_t row, const Vector<float>& weight) {
              store(weights_.get() + offset(block * lanes, factor, row, group), weight);
            });
      }
    });
  }

  const ColumnGroups& groups() const { return groups_; }
  // Of a block of channels from `channel` on.
  const float* weight(int64_t channel, Factor factor, int64_t row) const {
    return weights_.get() + offset(channel, factor, row, 0);
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
                         const float* const (&weight)[kFactors], int64_t kernel_rows, bool accumulate, int64_t columns,
                         const LaneOutputs<out_t>& out, const Ahead& ahead) {
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
      [&](int64_t row, int v) {
        for (int i = 0; i < 2; ++i) __builtin_prefetch(ahead.at(row, 2 * v + i), 0, 2);
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

// The outputs of one tile, as accumulators.
template <typename scalar_t>
class WinogradLanes {
 public:
  using Kernels = WinogradKernels<scalar_t>;
  static constexpr int64_t lanes = kLanes<float>;

  WinogradLanes(const Correlation<scalar_t>& c, const Kernels& kernels)
      : c_(c),
        kernels_(kernels),
        x_(c, {whole_steps(c, kBlockRows), (c.tile.w + 1) / 2 * 2}, 1, 0, {0, kMargin}),
        parts_(kernel_parts({c.kernel.h, kernels.groups().count()})) {
    for (int64_t group = 0; group < kernels.groups().count(); ++group) {
      offsets_.push_back(kernels.groups().column(group) * lanes);
    }
  }

  // Whether it takes less time than the plain sum.
  static bool pays(const Correlation<scalar_t>& c) {
    constexpr int64_t kCost = kVectorBytes == 64 ? 20 : 40;  // of inputs read twice, in products
    const int64_t pairs = (c.tile.w + 1) / 2, more = c.kernel.h * c.kernel.w * (2 * pairs - c.tile.w);
    return pairs * saved_products(c.kernel) - more >= kCost * pairs;
  }

  static int64_t step(const Correlation<scalar_t>&) { return kBlockRows; }

  void bring_inputs(const TileOfMap& tile, int64_t row) {
    x_.fill(tile, row == 0 ? 0 : x_.rows_under(row), x_.rows_under(row + kBlockRows));
  }

  bool is_single() const { return parts_.size() == 1; }

  // As that of LaneConvolution.
  template <typename out_t>
  void run(int64_t block, const TileOfMap& tile, int64_t row, int64_t begin, int64_t end, const LaneOutputs<out_t>& out,
           const TileOfMap& next, const Map<scalar_t>* y) const {
    const scalar_t* const pixel =
        c_.x.pixel(next.image, next.channel + block * lanes, next.row + row, next.column + begin);
    const Ahead ahead = ahead_in(c_.x, pixel, c_.x.column_step);
    const int64_t above = c_.offset.h - (tile.row + row);
    for (const KernelPart& part : parts_) {
      const float* const x = x_[block].row(row + part.row) + begin * lanes;
      const float* weight[kFactors];
      for (int factor = kSum; factor < kFactors; ++factor) {
        weight[factor] = kernels_.weight(tile.channel, Factor(factor), part.row);
      }
      for (int64_t p = 0; p < end - begin; p += 2 * kPairVectors) {
        const int64_t columns = std::min<int64_t>(2 * kPairVectors, end - begin - p), column = tile.column + begin + p;
        if (y != nullptr) {
          const int64_t soon = column + 2 * kPairVectors;
          for (int64_t i = 0; i < columns; i += kBlockVectors) {
            ask_for(*y, y->pixel(tile.image, tile.channel, tile.row + row, soon + i));
          }
        }
        const FactorGroups groups(kernels_.groups(), groups_inside(part, column, column + columns - 1));
        convolve_lane_pairs_of<out_t>(part.rows, (columns + 1) / 2,
                                      std::make_integer_sequence<int, kKernelRows * kPairVectors>{})(
            x + p * lanes, x_[block].row_step(), {above - part.row, above - part.row + c_.in.h}, groups,
            offsets_.data(), weight, c_.kernel.h, &part != &parts_.front(), columns,
            {out.row_step, out.data + p * out.column_step, out.column_step,
             &part == &parts_.back() ? out.bias : Vector<acc_type<out_t>>{}},
            {ahead.at(0, p), ahead.row_step, ahead.column_step});
      }
    }
  }

 private:
  // Columns of zeros around a map that a block reads where one of its pairs, or one column of a group, lies inside.
  static constexpr int64_t kMargin = 3 + 2 * (kPairVectors - 1);

  // The groups of a part of a row of the kernel under which outputs [first, last] of a row find more than padding.
  Range groups_inside(const KernelPart& part, int64_t first, int64_t last) const {
    const ColumnGroups& groups = kernels_.groups();
    Range inside = {part.column, part.column + part.columns};
    const auto is_left = [&](int64_t group) { return last + 2 + groups.column(group) < c_.offset.w; };
    const auto is_right = [&](int64_t group) { return first + groups.column(group) - c_.offset.w >= c_.in.w; };
    while (inside.begin < inside.end && is_left(inside.begin)) ++inside.begin;
    while (inside.begin < inside.end && is_right(inside.end - 1)) --inside.end;
    return inside;
  }

  const Correlation<scalar_t>& c_;
  const Kernels& kernels_;
  TileGroup<scalar_t, float> x_;
  std::vector<KernelPart> parts_;
  std::vector<int64_t> offsets_;
};
