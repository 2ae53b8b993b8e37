// Convolutions of planes as bfloat16 on AMX: stride and dilation 1.
// Compiled once for each instruction set by foreach_isa.h after plane_tiles_simd.h, inside a namespace.

// With PyTorch's brgemm: a row of 16 (or 32) outputs is, for one row of the kernel, the product
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
        pairs_(c.kernel.h * (width_ + columns_)),
        x_(c, c.tile.h, windows_, columns_, width_) {
    std::fill_n(pairs_.get(), c.kernel.h * (width_ + columns_), 0);
  }

  InputWindows<scalar_t, uint16_t>& inputs() { return x_; }

  static constexpr bool kMakesElements = false;

  static void release() { at::native::cpublas::brgemm_release(); }

  int64_t pitch() const { return whole_vectors<uint16_t>(windows_ * columns_); }
  int64_t rows() const { return c_.tile.h; }

  void run(const TileOfMap& tile, int64_t channel, float* out, int64_t pitch, const TileOfMap& next) {
    set_kernel(tile.channel + channel);
    for (int64_t w = 0; w < windows_; ++w) {
      // A share of the next tile's rows for each window.
      for (int64_t row = w; row < next.rows; row += windows_) {
        __builtin_prefetch(c_.x.pixel(next.image, next.channel, next.row + row, next.column));
      }
      at::native::cpublas::brgemm(tile.rows, columns_, c_.kernel.h * width_, width_, columns_, pitch, false,
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
    const Extent kernel = c_.kernel;
    const int64_t taps = kernel.h * kernel.w, sequence = width_ + columns_, columns = columns_, width = width_;
    const auto* const weight = reinterpret_cast<const uint16_t*>(c_.weight) + channel * taps;
    // All sequences first: a vector that is read just after a few of its elements were written waits for them.
    for (int64_t kh = 0; kh < kernel.h; ++kh) {
      // Pair m is that of the taps width - 2 - m and width - 1 - m; what no kernel reaches stays zero.
      uint32_t* pair = pairs_.get() + kh * sequence + width - 1;
      uint32_t tap = 0;
      for (int64_t kw = 0; kw < kernel.w; ++kw, --pair) {
        const int64_t index = kh * kernel.w + kw;
        const uint32_t next = weight[c_.flipped ? taps - 1 - index : index];
        *pair = tap | next << 16;
        tap = next;
      }
      *pair = tap;
    }
    uint32_t* to = band_.get();
    for (int64_t kh = 0; kh < kernel.h; ++kh) {
      const uint32_t* from = pairs_.get() + kh * sequence + width - 2;
      for (int64_t j = 0; j < width; j += 2, from -= 2, to += columns) {
        for (int64_t n = 0; n < columns; n += kLanes<uint32_t>) store(to + n, load(from + n));
      }
    }
  }

  const Correlation<scalar_t>& c_;
  int64_t columns_, width_, windows_, channel_ = -1;
  Scratch<uint32_t> band_, pairs_;
  InputWindows<scalar_t, uint16_t> x_;
};
