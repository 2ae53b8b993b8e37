// Convolutions in float32 with tall kernels: minimal filtering along rows and columns, channels in the lanes, stride
// and dilation 1. Compiled once for each instruction set by foreach_isa.h after winograd_lanes_simd.h, inside a
// namespace.

// The outputs of one tile, as accumulators.
template <typename scalar_t>
class TallLanes {
 public:
  static constexpr int64_t lanes = kLanes<float>;
  static constexpr bool kMakesElements = false;

  // Of the rows that are left over. The others are made for one block at a time: they take a multiple of the room of
  // the kernel.
  struct Kernels : WinogradKernels<scalar_t> {
    explicit Kernels(const Correlation<scalar_t>& c) : WinogradKernels<scalar_t>(c, tall_rows(c.kernel.h)) {}
  };

  TallLanes(const Correlation<scalar_t>& c, const Kernels& kernels)
      : c_(c),
        kernels_(kernels),
        pass_rows_(rows_of_pass(c.kernel.h)),
        x_(c, {whole_steps(c, step(c)), (c.tile.w + 1) / 2 * 2}, 1, 0, {0, LanePairs::kMargin}),
        differences_(std::min(x_.rows_under(step(c)), c.in.h + kTallStep - 1) * x_[0].row_step()),
        passes_(kernels.groups(), pass_rows_, c.in.w, c.offset.w),
        rest_(kernels.groups(), kernels.rows(), c.in.w, c.offset.w),
        natural_(c.kernel.h * c.kernel.w * lanes),
        kernel_(c.kernel.h * c.kernel.w * lanes),
        factors_(kFactors * factor_size()),
        outputs_(std::size(kTallPasses) * kBlockRows * c.tile.w * lanes) {}

  // Whether it takes less time than `products` for each two outputs.
  static bool pays(const Correlation<scalar_t>& c, int64_t products) {
    constexpr int64_t kCost = 180;  // of sums and differences, and of what passes share, in products of two outputs
    const int64_t per_row = pair_products(c.kernel) / c.kernel.h;
    const int64_t rest = c.kernel.h - tall_rows(c.kernel.h), passes = std::size(kTallPasses) * rows_of_pass(c.kernel.h);
    const int64_t fewer = (passes + kTallStep * rest) * per_row / kTallStep + kCost;
    return saved_products(c.kernel) > 0 && fewer * whole_steps(c, step(c)) <= products * whole_steps(c, kBlockRows);
  }

  static int64_t step(const Correlation<scalar_t>&) { return kBlockRows * kTallStep; }

  void bring_inputs(const TileOfMap& tile, int64_t row) { x_.bring(tile, row, step(c_)); }

  bool is_single() const { return false; }

  // As that of LaneConvolution, for all columns of a tile.
  void run(int64_t block, const TileOfMap& tile, int64_t row, int64_t /*begin*/, int64_t /*end*/,
           const LaneOutputs<float>& out, const TileOfMap& next, const LinesAhead& y) {
    const PaddedTile<scalar_t, float>& x = x_[block];
    const int64_t above = c_.offset.h - (tile.row + row);
    const Range inside = {above, above + c_.in.h};
    const Range columns = x.columns(tile.column - c_.offset.w);
    const Range rows = {std::max<int64_t>(0, inside.begin), std::min(inside.end, x_.rows_under(step(c_)))};
    differences_.make(x.row(row), x.row_step(), rows, {columns.begin * lanes, columns.end * lanes});
    load_kernels<float>(c_, tile.channel, natural_.get(), kernel_.get());
    const Extent size = {kBlockRows, tile.columns * lanes};
    LaneOutputs<float> of_pass = {size.w, outputs_.get(), lanes, Vector<float>{}};
    for (const TallPass& pass : kTallPasses) {
      const float* const in = differences_.row(pass.inputs, pass.input_row());
      passes_.run(in, kTallStep * differences_.row_step(pass.inputs),
                  pass.rows_inside(inside, kBlockRows + pass_rows_ - 1), factors_of(pass), false, tile.column,
                  tile.columns, of_pass, LinesAhead(of_pass.data), LinesAhead(of_pass.data));
      of_pass.data += size.h * size.w;
    }
    add_passes(outputs_.get(), size,
               [&](int64_t r, int64_t i, Vector<float> sum) { store(out.data + r * out.row_step + i, sum); });
    // Under the rows of the kernel that are left over.
    const LinesAhead ahead = x_.ahead(next, block, row);
    for (int64_t r = 0; r < step(c_); r += kBlockRows) {
      const int64_t first = tall_rows(c_.kernel.h) + r;
      const LaneOutputs<float> to = {out.row_step, out.data + r * out.row_step, out.column_step, out.bias};
      rest_.run(x.row(row + first), x.row_step(), {inside.begin - first, inside.end - first},
                kernels_.weights(tile.channel), true, tile.column, tile.columns, to, ahead.moved(r, 0), y.moved(r, 0));
    }
  }

 private:
  int64_t factor_size() const { return kernels_.groups().count() * pass_rows_ * lanes; }

  // The weights of each factor of a pass: (groups, rows, lanes).
  std::array<const float*, kFactors> factors_of(const TallPass& pass) {
    for_factor_weights(
        kernels_.groups(), pass_rows_,
        [&](int64_t column, int64_t row) {
          const float* const first =
              kernel_.get() + (column * c_.kernel.h + row * kTallStep + pass.weight_row()) * lanes;
          Vector<float> sum = load(first);
          for (int64_t i = 1; i < kTallStep; ++i) {
            if ((i & ~pass.weights()) == 0) sum += load(first + i * lanes);
          }
          return sum;
        },
        [&](Factor factor, int64_t group, int64_t row, const Vector<float>& weight) {
          store(factors_.get() + factor * factor_size() + (group * pass_rows_ + row) * lanes, weight);
        });
    std::array<const float*, kFactors> factors;
    for (int factor = kSum; factor < kFactors; ++factor) factors[factor] = factors_.get() + factor * factor_size();
    return factors;
  }

  const Correlation<scalar_t>& c_;
  const Kernels& kernels_;
  int64_t pass_rows_;
  TileGroup<scalar_t, float> x_;
  RowDifferences differences_;
  LanePairs passes_, rest_;
  Scratch<float> natural_, kernel_;  // (KH, KW, lanes) and (KW, KH, lanes)
  Scratch<float> factors_, outputs_;
};
