// Convolutions of planes as bfloat16 in the tiles of AMX: stride and dilation 1.
// Compiled once for each instruction set by foreach_isa.h after plane_tiles_simd.h, inside a namespace.

#if defined(MIXER_KERNELS_ISA_AMX)
// Strips of 16 rows of outputs, 16 columns of each of two windows or twice as many of one, are for one row of the
// kernel the product of the inputs under them with a banded (Toeplitz) matrix of that row. Neither is ever stored: rows
// of the left operand overlap in the plane, and those of the right one are parts of one sequence of pairs of taps.
// bands: such a sequence for each row of the kernel, `sequence` long, from the first row's first unit on.
template <int kStrips, int kWindows, int kColumnTiles, typename Tiles>
void convolve_bands(const uint16_t* x, int64_t window, int64_t width, const uint32_t* bands, int64_t sequence,
                    int64_t kernel_rows, float* out, int64_t pitch) {
  Tiles tiles;
  const auto for_both = [](auto count, const auto& f) {
    f(std::integral_constant<int, 0>{});
    if constexpr (count() == 2) f(std::integral_constant<int, 1>{});
  };
  constexpr std::integral_constant<int, kStrips> strips;
  constexpr std::integral_constant<int, kWindows * kColumnTiles> across;
  for_both(strips,
           [&](auto strip) { for_both(across, [&](auto column) { tiles.template clear<2 * strip() + column()>(); }); });
  for (int64_t row = 0; row < kernel_rows; ++row) {
    for (int64_t column = 0; column < width; column += 2 * kTileSide) {
      // A row of the right operand is two taps further than the one above.
      constexpr int64_t kStep = -2 * static_cast<int64_t>(sizeof(uint32_t));
      const uint32_t* const band = bands + row * sequence - column;
      tiles.template load_tile<6>(band, kStep);
      if constexpr (kColumnTiles == 2) tiles.template load_tile<7>(band + kTileSide, kStep);
      for_both(strips, [&](auto strip) {
        const uint16_t* from = x + (strip() * kTileSide + row) * width + column;
        tiles.template load_tile<4>(from, width * sizeof(uint16_t));
        tiles.template dot<2 * strip(), 4, 6>();
        if constexpr (kColumnTiles == 2) tiles.template dot<2 * strip() + 1, 4, 7>();
        if constexpr (kWindows == 2) {
          tiles.template load_tile<5>(from + window, width * sizeof(uint16_t));
          tiles.template dot<2 * strip() + 1, 5, 6>();
        }
      });
    }
  }
  for_both(strips, [&](auto strip) {
    for_both(across, [&](auto column) {
      float* const to = out + strip() * kTileSide * pitch + column() * kTileSide;
      tiles.template store_tile<2 * strip() + column()>(to, pitch * sizeof(float));
    });
  });
}

// Zeros of the band meet inputs outside of the kernel, so that an infinity spreads within its tile.
template <typename scalar_t, typename Tiles>
class BandedConvolution {
 public:
  explicit BandedConvolution(const Correlation<scalar_t>& c)
      : c_(c),
        columns_(columns_of_window(c)),
        width_(steps(c, columns_) * 2 * kTileSide),
        windows_((c.tile.w + columns_ - 1) / columns_),
        sequence_(width_ + columns_),
        // A whole vector may be written behind the last tap.
        bands_(c.kernel.h * sequence_ + kTileSide),
        x_(c, rows(), windows_, columns_, width_) {
    std::fill_n(bands_.get(), c.kernel.h * sequence_ + kTileSide, 0);
    const auto place = [&](int64_t tap) {
      const bool outside = tap < 0 || tap >= c.kernel.w;
      return static_cast<uint16_t>(outside ? 2 * lanes - 1 : c.flipped ? c.kernel.w - 1 - tap : tap);
    };
    for (int64_t i = 0; i < 2 * lanes; ++i) {
      order_[2 * i] = place(c.kernel.w - 1 - i);
      order_[2 * i + 1] = place(c.kernel.w - i);
    }
  }

  // Whether it takes less time than channels in the lanes, by estimates of a plane's cycles: what its tiles multiply
  // and the way there and back, and what vectors multiply and move.
  static bool pays(const Correlation<scalar_t>& c) {
    const int64_t strips = whole_strips(c.tile.h) / kTileSide, columns = whole_strips(c.tile.w) / kTileSide;
    const int64_t products = strips * columns * c.kernel.h * steps(c, columns_of_window(c));
    const int64_t of_bands = 17 * products + (c.channels_last ? 200 + 30 * c.tile.h : 250 + 10 * c.tile.h);
    const int64_t taps = c.kernel.h * c.kernel.w, pixels = c.tile.h * c.tile.w;
    const int64_t of_lanes = pixels * (taps + (c.channels_last ? 18 : 54)) / 36;
    return of_bands * c.channels < of_lanes * whole_vectors<float>(c.channels);
  }

  InputWindows<scalar_t, uint16_t>& inputs() { return x_; }

  static constexpr bool kMakesElements = false;

  int64_t pitch() const { return whole_vectors<uint16_t>(windows_ * columns_); }
  int64_t rows() const { return whole_strips(c_.tile.h); }

  void run(const TileOfMap& tile, int64_t channel, float* out, int64_t pitch, const TileOfMap& next) {
    set_kernel(tile.channel + channel);
    ask_ahead(tile, channel, next);
    const auto convolve = [&](auto strips, auto windows, auto column_tiles) {
      convolve_bands<strips(), windows(), column_tiles(), Tiles>(
          x_.window(channel, 0), x_.window(0, 1) - x_.window(0, 0), width_, bands_.get() + width_, sequence_,
          c_.kernel.h, out, pitch);
    };
    constexpr std::integral_constant<int, 1> one;
    constexpr std::integral_constant<int, 2> two;
    const auto convolve_strips = [&](auto strips) {
      if (columns_ > kTileSide) return convolve(strips, one, two);
      if (windows_ == 2) return convolve(strips, two, one);
      convolve(strips, one, one);
    };
    if (tile.rows > kTileSide) return convolve_strips(two);
    convolve_strips(one);
  }

 private:
  // Brings what comes next into the cache: the next plane of the tile, or, of one plane, the next tile.
  void ask_ahead(const TileOfMap& tile, int64_t channel, const TileOfMap& next) const {
    if (channel + 1 < tile.channels) {
      const uint16_t* const plane = x_.window(channel + 1, 0);
      for (int64_t i = 0; i < x_.window(0, windows_) - x_.window(0, 0); i += lanes) __builtin_prefetch(plane + i);
    } else if (!c_.channels_last) {
      for (int64_t row = 0; row < next.rows; ++row) {
        __builtin_prefetch(c_.x.pixel(next.image, next.channel, next.row + row, next.column));
      }
    }
  }

  // Products of a tile for a row of the kernel.
  static int64_t steps(const Correlation<scalar_t>& c, int64_t columns) {
    return (columns + c.kernel.w - 1 + 2 * kTileSide - 1) / (2 * kTileSide);
  }

  // Wide windows share inputs, but may be deeper than two narrow ones.
  static int64_t columns_of_window(const Correlation<scalar_t>& c) {
    const bool narrow = c.tile.w <= kTileSide || steps(c, kTileSide) < steps(c, 2 * kTileSide);
    return narrow ? kTileSide : 2 * kTileSide;
  }

  // A unit of the right operand holds two neighbouring rows j, j + 1 of a column n: the taps j - n and j + 1 - n. Along
  // a sequence taps come in descending order.
  void set_kernel(int64_t channel) {
    if (channel == channel_) return;
    channel_ = channel;
    const Extent kernel = c_.kernel;
    const auto* from = reinterpret_cast<const uint16_t*>(c_.weight) + channel * kernel.h * kernel.w;
    for (int64_t kh = 0; kh < kernel.h; ++kh, from += kernel.w) {
      const auto low = load_within<uint16_t>(from, 0, kernel.w), high = load_within<uint16_t>(from, lanes, kernel.w);
      uint32_t* const to = bands_.get() + (c_.flipped ? kernel.h - 1 - kh : kh) * sequence_ + width_ + 1 - kernel.w;
      for (int64_t i = 0; i <= kernel.w; i += kTileSide) {
        const __m512i pair = _mm512_permutex2var_epi16((__m512i)low, (__m512i)load(order_ + 2 * i), (__m512i)high);
        store(to + i, (Vector<uint32_t>)pair);
      }
    }
  }

  static constexpr int64_t lanes = kLanes<uint16_t>;

  const Correlation<scalar_t>& c_;
  // Where the taps of a sequence's units lie in a row of the kernel, which has at most 63, and a zero behind them.
  alignas(kVectorBytes) uint16_t order_[4 * lanes];
  int64_t columns_, width_, windows_, sequence_;
  Scratch<uint32_t> bands_;
  int64_t channel_ = -1;
  InputWindows<scalar_t, uint16_t> x_;
  typename Tiles::Session session_;
};
#endif
