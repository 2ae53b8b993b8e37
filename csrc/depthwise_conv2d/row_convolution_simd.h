// Convolutions of planes, rows of outputs in registers: stride and dilation 1. In float32, or of bfloat16 pairs: a
// vector of elements holds those of every second column, so that of two vectors of outputs one has the even columns,
// the other the odd ones.
// Compiled once for each instruction set by foreach_isa.h after plane_tiles_simd.h, inside a namespace.

// What planes are made of.
template <typename operand_t>
using plane_type = std::conditional_t<kUnitDepth<operand_t> == 2, uint16_t, float>;

// The inputs of vector v of a block's outputs.
template <typename operand_t>
UnitVector<operand_t> load_columns(const plane_type<operand_t>* in, int v) {
  if constexpr (kUnitDepth<operand_t> == 2) {
    return (UnitVector<operand_t>)load(in + v);
  } else {
    return load(in + v * kLanes<float>);
  }
}

template <int kFirst, int... kLane>
inline Vector<float> interleave_half(Vector<float> even, Vector<float> odd, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(even, odd, (kFirst + kLane / 2 + kLane % 2 * kLanes<float>)...);
}

// Even and odd columns as they follow each other.
inline void interleave(Vector<float> (&v)[2]) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<float>>{};
  const Vector<float> even = v[0], odd = v[1];
  v[0] = interleave_half<0>(even, odd, lanes);
  v[1] = interleave_half<kLanes<float> / 2>(even, odd, lanes);
}

// Adds kTaps rows of the kernel, `taps` of each, to a grid of blocks, whose first row has inputs that are not padding
// in `rows`. offsets: where the first output finds its inputs, for each tap of a row; weight: (taps, KH). The bias
// last: a sum that begins with it is rounded at its size. Meanwhile as many rows as outputs come into the cache from
// `ahead`, and the lines that outputs leave for: stores that wait for those hold up the next block.
template <typename operand_t, typename out_t, int kTaps, int kVectors>
void convolve_rows(const plane_type<operand_t>* x, int64_t width, Range rows, Extent blocks, const int64_t* offsets,
                   int64_t taps, const unit_type<operand_t>* weight, int64_t kernel_rows, bool accumulate, float bias,
                   out_t* out, int64_t pitch, Ahead ahead) {
  using unit_t = unit_type<operand_t>;
  for (int64_t h = 0; h < blocks.h; ++h) {
    for (int64_t w = 0; w < blocks.w; ++w) {
      const int64_t column = w * kVectors * kLanes<float>;
      Vector<float> acc[kBlockRows][kVectors];
      clear_block<acc_type<operand_t>>(acc);
      add_columns<operand_t, kTaps, kVectors>(
          {0, taps}, [&](int64_t tap) { return x + column + offsets[tap]; }, width, rows, load_columns<operand_t>,
          [&](int64_t tap) { return weight + tap * kernel_rows; },
          [](const unit_t* column, int row) { return broadcast(column[row]); },
          [&](int64_t row, int v) {
            __builtin_prefetch(ahead.at(row, w * kVectors + v));
            __builtin_prefetch(out + row * pitch + column + v * kLanes<float>, 1);
          },
          acc);
#pragma GCC unroll 8
      for (int r = 0; r < kBlockRows; ++r) {
        if constexpr (kUnitDepth<operand_t> == 2) interleave(acc[r]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          out_t* const to = out + r * pitch + column + v * kLanes<float>;
          store_acc(to, (accumulate ? load_as_acc(to) + acc[r][v] : acc[r][v]) + bias);
        }
      }
    }
    x += kBlockRows * width;
    rows = {rows.begin - kBlockRows, rows.end - kBlockRows};
    out += kBlockRows * pitch;
    ahead.data = ahead.at(kBlockRows, 0);
  }
}

template <typename operand_t, typename out_t, int... kIndex>
auto convolve_rows_of(int64_t taps, int64_t vectors, std::integer_sequence<int, kIndex...>) {
  // Rows of pairs are whole blocks.
  constexpr int kLeast = kUnitDepth<operand_t> == 2 ? kBlockVectors : 1;
  static constexpr decltype(&convolve_rows<operand_t, out_t, 1, kBlockVectors>) kAll[] = {
      &convolve_rows<operand_t, out_t, kIndex / kBlockVectors + 1, std::max(kIndex % kBlockVectors + 1, kLeast)>...};
  return kAll[(taps - 1) * kBlockVectors + vectors - 1];
}

// Calls f(first, width, count) for `count` blocks of `width` vectors from vector `first` on: blocks of kMost, and
// behind them one that is narrower.
template <int kMost, typename F>
void for_wide_blocks(int64_t vectors, const F& f) {
  const int64_t whole = vectors / kMost, rest = vectors % kMost;
  if (whole > 0) f(0, kMost, whole);
  if (rest > 0) f(whole * kMost, rest, 1);
}

// The kernel of a channel, as units: (units of KW, KH).
template <typename operand_t, typename scalar_t>
void load_kernel(const Correlation<scalar_t>& c, int64_t channel, unit_type<operand_t>* to) {
  using unit_t = unit_type<operand_t>;
  const scalar_t* const from = c.weight + channel * c.kernel.h * c.kernel.w;
  for_kernel_units<operand_t>(
      c, [&](int64_t index) { return element_of<unit_t>(from[index]); }, [&](unit_t unit) { *to++ = unit; });
}

template <typename scalar_t, typename operand_t>
class RowConvolution {
 public:
  explicit RowConvolution(const Correlation<scalar_t>& c)
      : c_(c),
        pitch_(whole_vectors<bits_type<scalar_t>>(c.tile.w)),
        rows_(whole_steps(c, kBlockRows)),
        taps_(units<operand_t>(c.kernel.w)),
        weight_(c.kernel.h * taps_),
        x_(c, rows_, 1, 0, whole_vectors<float>(pitch_ + c.kernel.w - 1)),
        parts_(kernel_parts({c.kernel.h, taps_})) {
    for (int64_t tap = 0; tap < taps_; ++tap) offsets_.push_back(unit_column<operand_t>(tap, c.kernel.w));
  }

  auto& inputs() { return x_; }

  // Of the outputs, which are made kBlockRows rows at a time: the last may be more than the tile has.
  int64_t pitch() const { return pitch_; }
  int64_t rows() const { return rows_; }

  // Whether outputs of a tile may be elements of the map, not only accumulators.
  static constexpr bool kMakesElements = std::is_same_v<scalar_t, operand_t>;
  bool makes_elements(const TileOfMap& tile) const {
    const bool whole = tile.columns == pitch_ && tile.rows % kBlockRows == 0;
    return whole && (std::is_same_v<scalar_t, float> || parts_.size() == 1);
  }

  // The outputs of a channel of the tile, in rows that are `pitch` apart. next: the tile to come.
  template <typename out_t>
  void run(const TileOfMap& tile, int64_t channel, out_t* out, int64_t pitch, const TileOfMap& next, float bias = 0) {
    set_kernel(tile.channel + channel);
    const int64_t above = c_.offset.h - tile.row, steps = (tile.rows + kBlockRows - 1) / kBlockRows;
    const plane_t* const x = x_.window(channel, 0);
    constexpr int64_t lanes = kLanes<float>;
    const Ahead ahead = ahead_in(c_.x, c_.x.pixel(next.image, next.channel, next.row, next.column), lanes);
    for (const KernelPart& part : parts_) {
      const Range inside = {above - part.row, above - part.row + c_.in.h};
      const unit_t* const weight = weight_.get() + part.column * c_.kernel.h + part.row;
      for_wide_blocks<kBlockVectors>(pitch_ / lanes, [&](int64_t first, int64_t width, int64_t count) {
        convolve_rows_of<operand_t, out_t>(part.rows, width,
                                           std::make_integer_sequence<int, kKernelRows * kBlockVectors>{})(
            x + part.row * x_.width() + first * lanes, x_.width(), inside, {steps, count},
            offsets_.data() + part.column, part.columns, weight, c_.kernel.h, &part != &parts_.front(),
            &part == &parts_.back() ? bias : 0, out + first * lanes, pitch,
            {ahead.at(0, first), ahead.row_step, ahead.column_step});
      });
    }
  }

 private:
  using unit_t = unit_type<operand_t>;
  using plane_t = plane_type<operand_t>;

  void set_kernel(int64_t channel) {
    if (channel == channel_) return;
    channel_ = channel;
    load_kernel<operand_t>(c_, channel, weight_.get());
  }

  const Correlation<scalar_t>& c_;
  int64_t pitch_, rows_, taps_, channel_ = -1;
  Scratch<unit_t> weight_;  // (units of KW, KH)
  InputWindows<scalar_t, plane_t> x_;
  std::vector<KernelPart> parts_;
  std::vector<int64_t> offsets_;
};
