// Minimal filtering F(2, 3) (Winograd; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016) along
// the rows of a map: outputs 2t and 2t + 1, from four neighbouring inputs d under three columns g of the kernel, take
// four products instead of six:
//   sum = (d1 + d2) (g0 + g1 + g2) / 2, difference = (d2 - d1) (g0 - g1 + g2) / 2,
//   y[2t] = sum + difference + (d0 - d2) g0, y[2t + 1] = sum - difference - (d1 - d3) g2.
// Under two columns, g2 = 0, they take three instead of four. Running sums are shorter than plain ones, so that errors
// are no larger. An infinity becomes NaN in the outputs that it reaches.
// Compiled once for each instruction set by foreach_isa.h after register_block_simd.h, inside a namespace.

// Of each two outputs; a block has as many accumulators as a plain one, and half of them at a time.
constexpr int kPairVectors = kVectorBytes == 64 ? 1 : 2;

// Groups of columns of a kernel: at most two of two, and behind them groups of three, so that what a pair reads belongs
// to the inputs of its outputs.
struct ColumnGroups {
  int64_t twos, threes;

  explicit ColumnGroups(int64_t columns) : twos((3 - columns % 3) % 3), threes((columns - 2 * twos) / 3) {}

  int64_t count() const { return twos + threes; }
  int64_t column(int64_t group) const { return 2 * std::min(group, twos) + 3 * std::max<int64_t>(0, group - twos); }
};

// How many products two outputs take less under a kernel of that size than without groups.
inline int64_t saved_products(Extent kernel) {
  const ColumnGroups groups(kernel.w);
  return groups.threes > 0 ? kernel.h * (2 * kernel.w - 4 * groups.threes - 3 * groups.twos) : 0;
}

// Those that remain.
inline int64_t pair_products(Extent kernel) { return 2 * kernel.h * kernel.w - saved_products(kernel); }

// What a product multiplies: inputs, of which the last two take the same difference, and weights.
enum Factor { kSum, kDifference, kEven, kOdd, kFactors };

// The groups that have a factor.
struct FactorGroups {
  Range all, threes;

  FactorGroups(const ColumnGroups& groups, Range some)
      : all(some), threes{std::clamp(groups.twos, some.begin, some.end), some.end} {}

  const Range& operator[](Factor factor) const { return factor == kOdd ? threes : all; }
};

// Calls f(factor, group, row, weight) for rows of a kernel; g(column, row): one of its weights.
template <typename Weight, typename F>
void for_factor_weights(const ColumnGroups& groups, int64_t rows, const Weight& g, const F& f) {
  for (int64_t group = 0; group < groups.count(); ++group) {
    const int64_t column = groups.column(group);
    for (int64_t row = 0; row < rows; ++row) {
      const auto g0 = g(column, row), g1 = g(column + 1, row);
      const auto g2 = group < groups.twos ? decltype(g0){} : g(column + 2, row);
      f(kSum, group, row, (g0 + g2 + g1) * 0.5f);
      f(kDifference, group, row, (g0 + g2 - g1) * 0.5f);
      f(kEven, group, row, g0);
      f(kOdd, group, row, -g2);
    }
  }
}

// The sums of a block of outputs under kTaps rows of the kernel, some groups of each. The rest as in add_columns,
// with a factor before each tap, and before the inputs of a pixel.
template <int kTaps, int kVectors, typename Inputs, typename Pixel, typename Kernel, typename Weight, typename Prefetch>
__attribute__((always_inline)) inline void convolve_pair_block(const FactorGroups& groups, const Inputs& inputs,
                                                               int64_t input_row, Range rows, const Pixel& pixel,
                                                               const Kernel& kernel, const Weight& weight,
                                                               const Prefetch& prefetch,
                                                               Vector<float> (&even)[kBlockRows][kVectors],
                                                               Vector<float> (&odd)[kBlockRows][kVectors]) {
  const auto add = [&](auto factor, const auto& prefetch, Vector<float>(&acc)[kBlockRows][kVectors])
                       __attribute__((always_inline)) {
                         add_columns<float, kTaps, kVectors>(
                             groups[factor], [&](int64_t group) { return inputs(factor, group); }, input_row, rows,
                             [&](const float* in, int v) { return pixel(factor, in, v); },
                             [&](int64_t group) { return kernel(factor, group); }, weight, prefetch, acc);
                       };
  const auto nothing = [](int64_t, int) {};
  clear_block<float>(even);
  clear_block<float>(odd);
  add(std::integral_constant<Factor, kSum>{}, prefetch, even);
  add(std::integral_constant<Factor, kDifference>{}, nothing, odd);
#pragma GCC unroll 8
  for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Vector<float> sum = even[r][v], difference = odd[r][v];
      even[r][v] = sum + difference;
      odd[r][v] = sum - difference;
    }
  }
  add(std::integral_constant<Factor, kEven>{}, nothing, even);
  add(std::integral_constant<Factor, kOdd>{}, nothing, odd);
}
