// Convolutions with the columns of a plane in the lanes of a vector: stride and dilation 1.
// Compiled once for each instruction set by foreach_isa.h after plane_tiles_simd.h, inside a namespace.

// Outputs that one step of the loops holds in registers, and the rows of the kernel it applies: with the weights and a
// pixel, 26 of 32 registers.
constexpr int kPlaneRows = kVectorBytes == 64 ? 8 : 4;
constexpr int kPlaneVectors = 2;
constexpr int kKernelRows = 9;

// Adds kTaps rows of the kernel, `taps` of each; weight: (taps, KH).
template <int kTaps, int kVectors>
void convolve_rows(const float* x, int64_t width, const float* weight, int64_t kernel_rows, int64_t taps,
                   bool accumulate, float* out, int64_t pitch) {
  constexpr int64_t lanes = kLanes<float>;
  Vector<float> acc[kPlaneRows][kVectors];
  for (int r = 0; r < kPlaneRows; ++r) {
    for (int v = 0; v < kVectors; ++v) acc[r][v] = Vector<float>{};
  }
  for (int64_t tap = 0; tap < taps; ++tap, weight += kernel_rows) {
    Vector<float> w[kTaps];
#pragma GCC unroll 9
    for (int k = 0; k < kTaps; ++k) {
      w[k] = broadcast(weight[k]);
      keep_in_register(w[k]);
    }
    const float* in = x + tap;
#pragma GCC unroll 16
    for (int row = 0; row < kPlaneRows + kTaps - 1; ++row, in += width) {
      keep_in_register(in);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        Vector<float> pixel = load(in + v * lanes);
        keep_in_register(pixel);
#pragma GCC unroll 9
        for (int k = 0; k < kTaps; ++k) {
          if (row - k >= 0 && row - k < kPlaneRows) acc[row - k][v] += pixel * w[k];
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kPlaneRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* const to = out + r * pitch + v * lanes;
      store(to, accumulate ? load(to) + acc[r][v] : acc[r][v]);
    }
  }
}

template <int... kIndex>
auto convolve_rows_of(int64_t taps, int64_t vectors, std::integer_sequence<int, kIndex...>) {
  static constexpr decltype(&convolve_rows<1, 1>) kAll[] = {
      &convolve_rows<kIndex / kPlaneVectors + 1, kIndex % kPlaneVectors + 1>...};
  return kAll[(taps - 1) * kPlaneVectors + vectors - 1];
}

// Of planes as float32.
template <typename scalar_t>
class RowConvolution {
 public:
  explicit RowConvolution(const Correlation<scalar_t>& c)
      : c_(c),
        pitch_(whole_vectors<bits_type<scalar_t>>(c.tile.w)),
        rows_((c.tile.h + kPlaneRows - 1) / kPlaneRows * kPlaneRows),
        weight_(c.kernel.h * c.kernel.w),
        x_(plane_block(c), rows_ + c.kernel.h - 1, 1, 0, whole_vectors<float>(pitch_ + c.kernel.w - 1)) {}

  static void release() {}

  // Of the outputs, which are made `step()` rows at a time: a last step may make more than the tile has.
  int64_t pitch() const { return pitch_; }
  int64_t rows() const { return rows_; }
  int64_t step() const { return kPlaneRows; }

  void set_inputs(const TileOfMap& tile) {
    x_.fill(c_.x, c_.in, tile, tile.row - c_.offset.h, tile.column - c_.offset.w, tile.rows + c_.kernel.h - 1);
  }

  // Part `part` of `parts` of a tile that comes later.
  void prefetch(const TileOfMap& tile, int64_t part, int64_t parts) const {
    x_.prefetch(c_.x, c_.in, tile, tile.row - c_.offset.h, tile.column - c_.offset.w, tile.rows + c_.kernel.h - 1, part,
                parts);
  }

  // One step of the outputs of a channel of the tile, from row `row` on.
  void run(const TileOfMap& tile, int64_t channel, int64_t row, float* out) {
    set_kernel(tile.channel + channel);
    // Long sums are made of short ones.
    const int64_t tall = (c_.kernel.h + kKernelRows - 1) / kKernelRows;
    const int64_t most = std::max<int64_t>(1, kLongestSum * tall / c_.kernel.h);
    const int64_t wide = (c_.kernel.w + most - 1) / most;
    const float* const x = x_.window(channel, 0) + row * x_.width();
    for (int64_t part = 0; part < tall * wide; ++part) {
      const int64_t kh = part / wide * c_.kernel.h / tall, kh_end = (part / wide + 1) * c_.kernel.h / tall;
      const int64_t kw = part % wide * c_.kernel.w / wide, kw_end = (part % wide + 1) * c_.kernel.w / wide;
      for (int64_t column = 0; column < pitch_; column += kPlaneVectors * kLanes<float>) {
        const int64_t vectors = std::min<int64_t>(kPlaneVectors, (pitch_ - column) / kLanes<float>);
        convolve_rows_of(kh_end - kh, vectors, std::make_integer_sequence<int, kKernelRows * kPlaneVectors>{})(
            x + kh * x_.width() + column + kw, x_.width(), weight_.get() + kw * c_.kernel.h + kh, c_.kernel.h,
            kw_end - kw, part > 0, out + column, pitch_);
      }
    }
  }

 private:
  void set_kernel(int64_t channel) {
    if (channel == channel_) return;
    channel_ = channel;
    const int64_t taps = c_.kernel.h * c_.kernel.w;
    const scalar_t* const from = c_.weight + channel * taps;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t kh = tap / c_.kernel.w, kw = tap % c_.kernel.w;
      weight_.get()[kw * c_.kernel.h + kh] = static_cast<float>(from[c_.flipped ? taps - 1 - tap : tap]);
    }
  }

  const Correlation<scalar_t>& c_;
  int64_t pitch_, rows_, channel_ = -1;
  Scratch<float> weight_;  // (KW, KH)
  PlaneWindows<scalar_t, float> x_;
};

// Of planes as bfloat16, with PyTorch's brgemm: a row of 16 (or 32) outputs is, for one row of the kernel, the product
// of the inputs under it with a banded (Toeplitz) matrix of that row. The rows of the plane are those of the product's
// left operand, which overlap in memory, and its depth runs over the rows of the kernel. Zeros of the band meet inputs
// outside of the kernel, so that an infinity spreads within its tile.
template <typename scalar_t>
class BandedConvolution {
 public:
  explicit BandedConvolution(const Correlation<scalar_t>& c)
      : c_(c),
        // The least padding; rows of whole cache lines.
        columns_(c.kernel.w <= 17 ? 16 : 32),
        width_((columns_ + c.kernel.w - 1 + 31) / 32 * 32),
        windows_((c.tile.w + columns_ - 1) / columns_),
        band_(c.kernel.h * width_ / 2 * columns_),
        diagonals_(width_ + columns_),
        x_(plane_block(c), c.tile.h + c.kernel.h - 1, windows_, columns_, width_) {}

  static void release() { at::native::cpublas::brgemm_release(); }

  int64_t pitch() const { return whole_vectors<uint16_t>(windows_ * columns_); }
  int64_t rows() const { return c_.tile.h; }
  int64_t step() const { return c_.tile.h; }

  void set_inputs(const TileOfMap& tile) {
    x_.fill(c_.x, c_.in, tile, tile.row - c_.offset.h, tile.column - c_.offset.w, tile.rows + c_.kernel.h - 1);
  }

  void prefetch(const TileOfMap& tile, int64_t part, int64_t parts) const {
    x_.prefetch(c_.x, c_.in, tile, tile.row - c_.offset.h, tile.column - c_.offset.w, tile.rows + c_.kernel.h - 1, part,
                parts);
  }

  void run(const TileOfMap& tile, int64_t channel, int64_t, float* out) {
    set_kernel(tile.channel + channel);
    for (int64_t w = 0; w < windows_; ++w) {
      at::native::cpublas::brgemm(tile.rows, columns_, c_.kernel.h * width_, width_, columns_, pitch(), false,
                                  reinterpret_cast<const c10::BFloat16*>(x_.window(channel, w)),
                                  reinterpret_cast<const c10::BFloat16*>(band_.get()), out + w * columns_);
    }
  }

 private:
  // A unit of the right operand holds two neighbouring rows j, j + 1 of a column n: the taps j - n and j + 1 - n. Units
  // of a row are those of the row above, two columns further: all rows are windows of one sequence of pairs of taps.
  void set_kernel(int64_t channel) {
    if (channel == channel_) return;
    channel_ = channel;
    const int64_t taps = c_.kernel.h * c_.kernel.w;
    const auto* const weight = reinterpret_cast<const uint16_t*>(c_.weight) + channel * taps;
    uint32_t* to = band_.get();
    for (int64_t kh = 0; kh < c_.kernel.h; ++kh) {
      const auto tap = [&](int64_t kw) -> uint32_t {
        if (kw < 0 || kw >= c_.kernel.w) return 0;
        const int64_t index = kh * c_.kernel.w + kw;
        return weight[c_.flipped ? taps - 1 - index : index];
      };
      // Pair m is that of the taps width - 2 - m and width - 1 - m.
      std::fill_n(diagonals_.get(), width_ + columns_, 0);
      for (int64_t kw = -1; kw < c_.kernel.w; ++kw) diagonals_.get()[width_ - 2 - kw] = tap(kw) | tap(kw + 1) << 16;
      for (int64_t j = 0; j < width_; j += 2, to += columns_) {
        const uint32_t* const from = diagonals_.get() + width_ - 2 - j;
        for (int64_t n = 0; n < columns_; n += kLanes<uint32_t>) store(to + n, load(from + n));
      }
    }
  }

  const Correlation<scalar_t>& c_;
  int64_t columns_, width_, windows_, channel_ = -1;
  Scratch<uint32_t> band_, diagonals_;
  PlaneWindows<scalar_t, uint16_t> x_;
};

// The sum over a tile of f(row, column), which gives that column and those behind it; sums of rows in float32, the rest
// in float64.
template <typename F>
double sum_plane(const TileOfMap& tile, const F& f) {
  constexpr int64_t lanes = kLanes<float>;
  double sum = 0;
  for (int64_t row = 0; row < tile.rows; ++row) {
    Vector<float> few{};
    int64_t i = 0;
    for (; i + lanes <= tile.columns; i += lanes) few += f(row, i);
    if (i < tile.columns) {
      const Vector<float> last = f(row, i);
      for (int64_t lane = 0; lane < tile.columns - i; ++lane) few[lane] += last[lane];
    }
    for (int64_t lane = 0; lane < lanes; ++lane) sum += few[lane];
  }
  return sum;
}

// Mean and sum of squared deviations of a tile.
inline void plane_moments(const float* values, int64_t pitch, const TileOfMap& tile, double* mean, double* deviations) {
  const double pixels = static_cast<double>(tile.rows * tile.columns);
  const auto value = [&](int64_t row, int64_t i) { return load_within<float>(values + row * pitch, i, pitch); };
  *mean = sum_plane(tile, value) / pixels;
  const Vector<float> center = broadcast(static_cast<float>(*mean));
  *deviations = sum_plane(tile, [&](int64_t row, int64_t i) {
    const Vector<float> apart = value(row, i) - center;
    return apart * apart;
  });
}

// residual + scale * v + shift for the first n of a row of whole vectors; streamed: past the caches.
template <typename scalar_t>
void finish_row(const Epilogue<scalar_t>& e, int64_t channel, const scalar_t* residual, const float* values, int64_t n,
                scalar_t* to, bool streamed) {
  using bits_t = bits_type<scalar_t>;
  constexpr int64_t lanes = kLanes<bits_t>, parts = lanes / kLanes<float>;
  const Vector<float> scale = broadcast(e.scale[channel]), shift = broadcast(e.shift[channel]);
  for (int64_t i = 0; i < n; i += lanes) {
    Vector<float> v[parts];
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t at = i + part * kLanes<float>;
      v[part] = load(values + at) * scale + shift;
      if (residual != nullptr) v[part] += load_as_acc(residual + at);
    }
    store_first(reinterpret_cast<bits_t*>(to) + i, std::min(lanes, n - i), round_to_bits<scalar_t>(v), streamed);
  }
}

// Parallel over tiles of planes, or of blocks of planes where the channels of the map are side by side.
template <typename scalar_t, typename Convolution>
void convolve_planes(const Correlation<scalar_t>& c, const Epilogue<scalar_t>& e, const Map<scalar_t>& y,
                     const Moments& moments) {
  using bits_t = bits_type<scalar_t>;
  const TileGrid grid = plane_grid(c);
  const bool across = y.column_step != 1, streamed = is_streamed(c);
  const auto task_at = [&](int64_t index) { return across ? grid.by_image(index) : index; };
  at::parallel_for(0, grid.tasks(), 1, [&](int64_t begin, int64_t end) {
    Convolution convolution(c);
    // Rows of whole vectors of elements.
    const int64_t pitch = convolution.pitch(), plane = plane_step<bits_t>(convolution.rows() * pitch);
    const Scratch<float> values(plane);
    std::fill_n(values.get(), plane, 0.0f);
    const Scratch<bits_t> finished(across ? grid.block() * plane : 0);
    std::optional<PlaneWindows<scalar_t, bits_t>> residual;
    if (e.residual.data != nullptr) residual.emplace(grid.block(), c.tile.h, 1, 0, pitch);
    for (int64_t index = begin; index < end; ++index) {
      const TileOfMap tile = grid[task_at(index)];
      convolution.set_inputs(tile);
      if (residual) residual->fill(e.residual, c.out, tile, tile.row, tile.column, tile.rows);
      const int64_t steps = (tile.rows + convolution.step() - 1) / convolution.step();
      for (int64_t part = 0; part < tile.channels * steps; ++part) {
        if (index + 1 < end) convolution.prefetch(grid[task_at(index + 1)], part, tile.channels * steps);
        const int64_t channel = part / steps, row = part % steps * convolution.step();
        const int64_t rows = std::min(convolution.step(), tile.rows - row);
        float* const out = values.get() + row * pitch;
        convolution.run(tile, channel, row, out);
        // Last: a sum that begins with the bias is rounded at its size.
        const float* const bias = e.bias == nullptr ? nullptr : e.bias + tile.channel + channel;
        activate<scalar_t>(moments.mean == nullptr ? e.activation : Activation::kNone,
                           BiasedRows<float>{out, bias, 1, rows * pitch});
        const auto* const past =
            residual ? reinterpret_cast<const scalar_t*>(residual->window(channel, 0)) + row * pitch : nullptr;
        // Rows without a gap are one.
        const bool whole = across || (pitch == tile.columns && y.row_step == pitch);
        const int64_t lines = whole ? 1 : rows, columns = whole ? rows * pitch : tile.columns;
        for (int64_t line = 0; line < lines; ++line) {
          finish_row(e, tile.channel + channel, past == nullptr ? past : past + line * pitch, out + line * pitch,
                     columns,
                     across ? reinterpret_cast<scalar_t*>(finished.get()) + channel * plane + row * pitch
                            : y.pixel(tile.image, tile.channel + channel, tile.row + row + line, tile.column),
                     streamed && !across);
        }
        if (moments.mean == nullptr) continue;
        activate<scalar_t>(e.activation, BiasedRows<float>{out, nullptr, 1, rows * pitch});
        if (row + rows < tile.rows) continue;
        const int64_t to = task_at(index) * grid.block() + channel;
        plane_moments(values.get(), pitch, tile, moments.mean + to, moments.deviations + to);
      }
      if (across) store_across(finished.get(), plane, pitch, tile, y, streamed);
    }
    if (streamed) end_of_stream();
    Convolution::release();
  });
}
