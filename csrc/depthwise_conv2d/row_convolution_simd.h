// Convolutions of planes as float32, rows of outputs in registers: stride and dilation 1.
// Compiled once for each instruction set by foreach_isa.h after plane_tiles_simd.h, inside a namespace.

// Adds kTaps rows of the kernel, `taps` of each, to a block whose inputs are not padding in `rows`; weight: (taps, KH).
// The bias last: a sum that begins with it is
// rounded at its size. Meanwhile as many rows as outputs come into the cache from `ahead`.
template <int kTaps, int kVectors>
void convolve_rows(const float* x, int64_t width, Range rows, const float* weight, int64_t kernel_rows, int64_t taps,
                   bool accumulate, float bias, float* out, int64_t pitch, const PlaneRows<const char>& ahead) {
  Vector<float> acc[kBlockRows][kVectors];
  convolve_block<float, kTaps, kVectors>(
      {0, taps}, [&](int64_t tap) { return x + tap; }, width, rows,
      [&](int64_t tap) { return weight + tap * kernel_rows; },
      [](const float* column, int row) { return broadcast(column[row]); },
      [&](int64_t row, int v) { __builtin_prefetch(ahead.row(row) + v * kVectorBytes); }, acc);
#pragma GCC unroll 8
  for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* const to = out + r * pitch + v * kLanes<float>;
      store(to, (accumulate ? load(to) + acc[r][v] : acc[r][v]) + bias);
    }
  }
}

template <int... kIndex>
auto convolve_rows_of(int64_t taps, int64_t vectors, std::integer_sequence<int, kIndex...>) {
  static constexpr decltype(&convolve_rows<1, 1>) kAll[] = {
      &convolve_rows<kIndex / kBlockVectors + 1, kIndex % kBlockVectors + 1>...};
  return kAll[(taps - 1) * kBlockVectors + vectors - 1];
}

template <typename scalar_t>
class RowConvolution {
 public:
  explicit RowConvolution(const Correlation<scalar_t>& c)
      : c_(c),
        pitch_(whole_vectors<bits_type<scalar_t>>(c.tile.w)),
        rows_((c.tile.h + kBlockRows - 1) / kBlockRows * kBlockRows),
        weight_(c.kernel.h * c.kernel.w),
        x_(c, rows_, 1, 0, whole_vectors<float>(pitch_ + c.kernel.w - 1)),
        parts_(kernel_parts(c.kernel)) {}

  static void release() {}

  InputWindows<scalar_t, float>& inputs() { return x_; }

  // Of the outputs, which are made `step()` rows at a time: a last step may make more than the tile has.
  int64_t pitch() const { return pitch_; }
  int64_t rows() const { return rows_; }
  int64_t step() const { return kBlockRows; }

  // One step of the outputs of a channel of the tile, from row `row` on; rows of `out` are `pitch` apart. next: the
  // tile to come.
  void run(const TileOfMap& tile, int64_t channel, int64_t row, float* out, int64_t pitch, const TileOfMap& next,
           float bias = 0) {
    set_kernel(tile.channel + channel);
    const float* const x = x_.window(channel, 0) + row * x_.width();
    const scalar_t* const ahead = c_.x.pixel(next.image, next.channel, next.row + row, next.column);
    const int64_t ahead_step = c_.x.row_step * static_cast<int64_t>(sizeof(scalar_t));
    const int64_t above = c_.offset.h - tile.row - row;
    for (const KernelPart& part : parts_) {
      const Range inside = {above - part.row, above - part.row + c_.in.h};
      const float* const in = x + part.row * x_.width() + part.column;
      const float* const weight = weight_.get() + part.column * c_.kernel.h + part.row;
      for (int64_t column = 0; column < pitch_; column += kBlockVectors * kLanes<float>) {
        const int64_t vectors = std::min<int64_t>(kBlockVectors, (pitch_ - column) / kLanes<float>);
        convolve_rows_of(part.rows, vectors, std::make_integer_sequence<int, kKernelRows * kBlockVectors>{})(
            in + column, x_.width(), inside, weight, c_.kernel.h, part.columns, &part != &parts_.front(),
            &part == &parts_.back() ? bias : 0, out + column, pitch,
            {reinterpret_cast<const char*>(ahead + column), ahead_step});
      }
    }
  }

 private:
  void set_kernel(int64_t channel) {
    if (channel == channel_) return;
    channel_ = channel;
    const Extent kernel = c_.kernel;
    const int64_t taps = kernel.h * kernel.w;
    const scalar_t* const from = c_.weight + channel * taps;
    int64_t tap = 0;
    for (int64_t kh = 0; kh < kernel.h; ++kh) {
      for (int64_t kw = 0; kw < kernel.w; ++kw, ++tap) {
        weight_.get()[kw * kernel.h + kh] = static_cast<float>(from[c_.flipped ? taps - 1 - tap : tap]);
      }
    }
  }

  const Correlation<scalar_t>& c_;
  int64_t pitch_, rows_, channel_ = -1;
  Scratch<float> weight_;  // (KW, KH)
  InputWindows<scalar_t, float> x_;
  std::vector<KernelPart> parts_;
};
