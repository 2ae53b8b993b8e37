// Convolutions of planes in float32 by minimal filtering: stride and dilation 1. In the lanes of a vector lie every
// second output of a row.
// Compiled once for each instruction set by foreach_isa.h after row_convolution_simd.h, inside a namespace.

// Adds kTaps rows of the kernel, some groups of each, to a grid of blocks, as convolve_rows does. offsets: where the
// first pair finds the inputs of a factor, for each group; weight: (groups, KH) for each factor.
template <int kTaps, int kVectors>
void convolve_pair_rows(const float* x, int64_t width, Range rows, Extent blocks, const FactorGroups& groups,
                        const int64_t* const (&offsets)[kFactors], const float* const (&weight)[kFactors],
                        int64_t kernel_rows, bool accumulate, float bias, float* out, int64_t pitch, Ahead ahead) {
  constexpr int64_t lanes = kLanes<float>;
  for (int64_t h = 0; h < blocks.h; ++h) {
    for (int64_t w = 0; w < blocks.w; ++w) {
      Vector<float> even[kBlockRows][kVectors], odd[kBlockRows][kVectors];
      convolve_pair_block<kTaps, kVectors>(
          groups, [&](Factor factor, int64_t group) { return x + w * kVectors * lanes + offsets[factor][group]; },
          width, rows, [](Factor, const float* in, int v) { return load_columns<float>(in, v); },
          [&](Factor factor, int64_t tap) { return weight[factor] + tap * kernel_rows; },
          [](const float* column, int row) { return broadcast(column[row]); },
          [&](int64_t row, int v) {
            for (int i = 0; i < 2; ++i) {
              const int64_t column = 2 * (w * kVectors + v) + i;
              __builtin_prefetch(ahead.at(row, column));
              __builtin_prefetch(out + row * pitch + column * lanes, 1);
            }
          },
          even, odd);
#pragma GCC unroll 8
      for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          Vector<float> both[2] = {even[r][v], odd[r][v]};
          interleave(both);
          float* const to = out + r * pitch + 2 * (w * kVectors + v) * lanes;
          for (int i = 0; i < 2; ++i) {
            store(to + i * lanes, (accumulate ? load(to + i * lanes) + both[i] : both[i]) + bias);
          }
        }
      }
    }
    x += kBlockRows * width;
    rows = {rows.begin - kBlockRows, rows.end - kBlockRows};
    out += kBlockRows * pitch;
    ahead.data = ahead.at(kBlockRows, 0);
  }
}

template <int... kIndex>
auto convolve_pair_rows_of(int64_t taps, int64_t vectors, std::integer_sequence<int, kIndex...>) {
  static constexpr decltype(&convolve_pair_rows<1, 1>) kAll[] = {
      &convolve_pair_rows<kIndex / kPairVectors + 1, kIndex % kPairVectors + 1>...};
  return kAll[(taps - 1) * kPairVectors + vectors - 1];
}

template <int kFirst, int... kLane>
inline Vector<float> every_second(Vector<float> low, Vector<float> high, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(low, high, (kFirst + 2 * kLane)...);
}

template <typename scalar_t>
class WinogradPlanes {
 public:
  explicit WinogradPlanes(const Correlation<scalar_t>& c)
      : c_(c),
        groups_(c.kernel.w),
        pitch_(pair_vectors(c.tile.w) * 2 * kLanes<float>),
        rows_(whole_steps(c, kBlockRows)),
        half_((pitch_ + c.kernel.w) / 2),
        // The last columns of a row share factors with the next one.
        x_(c, rows_ + 1, 1, 0, 2 * half_),
        plane_(plane_step<float>((rows_ + c.kernel.h) * half_)),
        factors_(6 * plane_),
        kernel_(c.kernel.h * c.kernel.w),
        weight_(kFactors * groups_.count() * c.kernel.h),
        parts_(kernel_parts({c.kernel.h, groups_.count()})) {
    for (int factor = kSum; factor < kFactors; ++factor) {
      for (int64_t group = 0; group < groups_.count(); ++group) {
        const int64_t column = groups_.column(group) + (factor == kOdd);
        offsets_[factor].push_back((2 * std::min<int>(factor, kEven) + column % 2) * plane_ + column / 2);
      }
    }
  }

  // Of making the factors of a row, in products.
  static constexpr int64_t kCost = 40;

  // Whether it takes less time than the plain sum, which may have fewer vectors where a row is short.
  static bool pays(const Correlation<scalar_t>& c) {
    constexpr int64_t lanes = kLanes<float>;
    const int64_t pairs = pair_vectors(c.tile.w), vectors = (c.tile.w + lanes - 1) / lanes;
    const int64_t more = c.kernel.h * c.kernel.w * (2 * pairs - vectors);  // of half-empty vectors
    return pairs * saved_products(c.kernel) - more >= kCost * pairs;
  }

  auto& inputs() { return x_; }

  // Of the outputs, which are made kBlockRows rows at a time: the last may be more than the tile has.
  int64_t pitch() const { return pitch_; }
  int64_t rows() const { return rows_; }

  // Whether outputs of a tile may be elements of the map, not only accumulators.
  static constexpr bool kMakesElements = std::is_same_v<scalar_t, float>;
  bool makes_elements(const TileOfMap& tile) const { return tile.columns == pitch_ && tile.rows % kBlockRows == 0; }

  // The outputs of a channel of the tile, in rows that are `pitch` apart. next: the tile to come.
  void run(const TileOfMap& tile, int64_t channel, float* out, int64_t pitch, const TileOfMap& next, float bias = 0) {
    set_kernel(tile.channel + channel);
    const int64_t above = c_.offset.h - tile.row, steps = (tile.rows + kBlockRows - 1) / kBlockRows;
    set_factors(x_.window(channel, 0), above, above + c_.in.h);
    constexpr int64_t lanes = kLanes<float>;
    const Ahead ahead = ahead_in(c_.x, c_.x.pixel(next.image, next.channel, next.row, next.column), lanes);
    for (const KernelPart& part : parts_) {
      const Range inside = {above - part.row, above - part.row + c_.in.h};
      const int64_t* offsets[kFactors];
      const float* weight[kFactors];
      for (int factor = kSum; factor < kFactors; ++factor) {
        offsets[factor] = offsets_[factor].data();
        weight[factor] = weight_.get() + factor * groups_.count() * c_.kernel.h + part.row;
      }
      const FactorGroups groups(groups_, {part.column, part.column + part.columns});
      for_wide_blocks<kPairVectors>(pair_vectors(tile.columns), [&](int64_t first, int64_t width, int64_t count) {
        convolve_pair_rows_of(part.rows, width, std::make_integer_sequence<int, kKernelRows * kPairVectors>{})(
            factors_.get() + part.row * half_ + first * lanes, half_, inside, {steps, count}, groups, offsets, weight,
            c_.kernel.h, &part != &parts_.front(), &part == &parts_.back() ? bias : 0, out + 2 * first * lanes, pitch,
            {ahead.at(0, 2 * first), ahead.row_step, ahead.column_step});
      });
    }
  }

 private:
  static int64_t pair_vectors(int64_t columns) { return (columns + 2 * kLanes<float> - 1) / (2 * kLanes<float>); }

  void set_kernel(int64_t channel) {
    if (channel == channel_) return;
    channel_ = channel;
    load_kernel<float>(c_, channel, kernel_.get());
    const int64_t rows = c_.kernel.h;
    for_factor_weights(
        groups_, rows, [&](int64_t column, int64_t row) { return kernel_.get()[column * rows + row]; },
        [&](Factor factor, int64_t group, int64_t row, float weight) {
          weight_.get()[(factor * groups_.count() + group) * rows + row] = weight;
        });
  }

  // Of rows [begin, end) of a plane, which follow each other without a gap, d1 + d2, d2 - d1 and d0 - d2, for even and
  // for odd columns of d0: six planes of half the width.
  void set_factors(const float* plane, int64_t begin, int64_t end) {
    constexpr int64_t lanes = kLanes<float>;
    constexpr auto all = std::make_integer_sequence<int, kLanes<float>>{};
    const int64_t rows = rows_ + c_.kernel.h - 1;
    begin = std::clamp<int64_t>(begin, 0, rows) * half_ / lanes * lanes;
    end = std::clamp<int64_t>(end, 0, rows) * half_;
    for (int64_t next = begin; next < end; next += lanes) {
      // The last vector may overlap the one before it.
      const int64_t i = std::min(next, end - lanes);
      const float* const from = plane + 2 * i;
      const Vector<float> low = load(from), high = load(from + lanes);
      const Vector<float> behind = load(from + 2), end_of_behind = load(from + lanes + 2);
      const Vector<float> d0 = every_second<0>(low, high, all), d1 = every_second<1>(low, high, all);
      const Vector<float> d2 = every_second<0>(behind, end_of_behind, all);
      const Vector<float> d3 = every_second<1>(behind, end_of_behind, all);
      float* const to = factors_.get() + i;
      store(to + (2 * kSum) * plane_, d1 + d2);
      store(to + (2 * kSum + 1) * plane_, d2 + d3);
      store(to + (2 * kDifference) * plane_, d2 - d1);
      store(to + (2 * kDifference + 1) * plane_, d3 - d2);
      store(to + (2 * kEven) * plane_, d0 - d2);
      store(to + (2 * kEven + 1) * plane_, d1 - d3);
    }
  }

  const Correlation<scalar_t>& c_;
  ColumnGroups groups_;
  int64_t pitch_, rows_, half_, channel_ = -1;
  InputWindows<scalar_t, float> x_;
  int64_t plane_;
  Scratch<float> factors_, kernel_, weight_;
  std::vector<KernelPart> parts_;
  std::array<std::vector<int64_t>, kFactors> offsets_;
};
