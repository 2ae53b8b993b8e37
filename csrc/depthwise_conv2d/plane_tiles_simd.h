// Tiles of maps with the columns of a channel side by side in the lanes of a vector, from and to either memory format.
// Compiled once for each instruction set by foreach_isa.h after units_simd.h, inside a namespace.

// Elements of a plane: accumulators, or the bits of elements of two bytes.
template <typename scalar_t>
using bits_type = std::conditional_t<sizeof(scalar_t) == 2, uint16_t, acc_type<scalar_t>>;

// Rows of a plane that begin `step` elements apart, or none.
template <typename T>
struct PlaneRows {
  T* data = nullptr;
  int64_t step = 0;

  T* row(int64_t index) const { return data + index * step; }
};

// How many planes a task takes: with the channels side by side in memory two cache lines of each pixel.
template <typename scalar_t>
int64_t plane_block(const Correlation<scalar_t>& c) {
  return c.channels_last ? 128 / static_cast<int64_t>(sizeof(scalar_t)) : 1;
}

template <typename scalar_t>
TileGrid plane_grid(const Correlation<scalar_t>& c) {
  return {c.batch, c.channels, plane_block(c), c.out, c.tile};
}

// One bit for each of the lanes [begin, end) that exist.
inline uint64_t lane_mask(int64_t begin, int64_t end, int64_t lanes) {
  const auto below = [](int64_t lane) { return lane == 64 ? ~uint64_t{0} : (uint64_t{1} << lane) - 1; };
  return below(std::clamp<int64_t>(end, 0, lanes)) & ~below(std::clamp<int64_t>(begin, 0, lanes));
}

// Elements [first, first + lanes) of a row of `size` elements; zeros outside of it.
template <typename plane_t, typename scalar_t>
inline Vector<plane_t> load_within(const scalar_t* row, int64_t first, int64_t size) {
  constexpr int64_t lanes = kLanes<plane_t>;
  if (first >= 0 && first + lanes <= size) return load_elements<plane_t>(row + first);
#if defined(__x86_64__)
  if constexpr (kVectorBytes == 64 && sizeof(scalar_t) == sizeof(plane_t)) {
    const uint64_t mask = lane_mask(-first, size - first, lanes);
    if constexpr (sizeof(plane_t) == 2) {
      return (Vector<plane_t>)_mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask), row + first);
    } else {
      return (Vector<plane_t>)_mm512_maskz_loadu_epi32(static_cast<__mmask16>(mask), row + first);
    }
  }
#endif
  plane_t few[lanes] = {};
  for (int64_t i = std::max<int64_t>(0, -first); i < std::min(lanes, size - first); ++i) {
    few[i] = element_of<plane_t>(row[first + i]);
  }
  return load(few);
}

// Adds elements to the accumulators that a vector of elements is made of, but nothing behind the first n.
template <typename scalar_t>
inline void add_elements(const scalar_t* from, int64_t n, Vector<acc_type<scalar_t>>* values) {
  constexpr int64_t lanes = kLanes<acc_type<scalar_t>>, all = kLanes<bits_type<scalar_t>>;
  alignas(kVectorBytes) scalar_t few[all];
  if (n < all) {
    store(reinterpret_cast<bits_type<scalar_t>*>(few), load_within<bits_type<scalar_t>>(from, 0, n));
    from = few;
  }
  for (int64_t i = 0; i < all; i += lanes) values[i / lanes] += load_as_acc(from + i);
}

// The first `count` of some vectors from rows of elements, `step` apart; all lanes but the first n are zeros.
template <typename plane_t, int kCount, typename scalar_t>
__attribute__((always_inline)) inline void load_rows(const scalar_t* from, int64_t step, int64_t count, int64_t n,
                                                     Vector<plane_t>* rows) {
  if (count == kCount && n >= kLanes<plane_t>) {
#pragma GCC unroll 32
    for (int i = 0; i < kCount; ++i, from += step) {
      keep_in_register(from);
      rows[i] = load_elements<plane_t>(from);
    }
    return;
  }
  for (int i = 0; i < kCount; ++i) {
    rows[i] = i < count ? load_within<plane_t>(from + i * step, 0, n) : Vector<plane_t>{};
  }
}

#if defined(__x86_64__)
// Lanes whose bit is set.
template <typename T>
inline void store_lanes(T* to, Vector<T> value, uint64_t mask) {
  if constexpr (kVectorBytes == 64 && sizeof(T) == 2) {
    _mm512_mask_storeu_epi16(to, static_cast<__mmask32>(mask), (__m512i)value);
  } else if constexpr (kVectorBytes == 64) {
    _mm512_mask_storeu_epi32(to, static_cast<__mmask16>(mask), (__m512i)value);
  }
}

// Lane order[i] in each lane i.
template <typename T, typename index_t>
inline Vector<T> permute(Vector<T> value, Vector<index_t> order) {
  if constexpr (kVectorBytes == 64) {
    return (Vector<T>)(sizeof(T) == 2 ? _mm512_permutexvar_epi16((__m512i)order, (__m512i)value)
                                      : _mm512_permutexvar_epi32((__m512i)order, (__m512i)value));
  }
}
#endif

// Lanes [begin, end) of the first `count` vectors to rows of elements, `step` apart: lane i is element i.
template <int kCount, typename T>
__attribute__((always_inline)) inline void store_rows(const Vector<T>* rows, int64_t count, int64_t begin, int64_t end,
                                                      T* to, int64_t step) {
  constexpr int64_t lanes = kLanes<T>;
  if (count == kCount && begin <= 0 && end >= lanes) {
#pragma GCC unroll 32
    for (int i = 0; i < kCount; ++i, to += step) {
      keep_in_register(to);
      store(to, rows[i]);
    }
    return;
  }
  if (begin >= end) return;
#if defined(__x86_64__)
  if constexpr (kVectorBytes == 64) {
    const uint64_t mask = lane_mask(begin, end, lanes);
    for (int i = 0; i < count; ++i) store_lanes(to + i * step, rows[i], mask);
    return;
  }
#endif
  for (int i = 0; i < count; ++i) {
    for (int64_t lane = std::max<int64_t>(0, begin); lane < std::min(end, lanes); ++lane) {
      to[i * step + lane] = rows[i][lane];
    }
  }
}

// The same where `step` is whole vectors. No store lies in two cache lines, which would take longer than to turn the
// lanes of a vector around.
template <int kCount, typename T>
__attribute__((always_inline)) inline void store_aligned_rows(const Vector<T>* rows, int64_t count, int64_t begin,
                                                              int64_t end, T* to, int64_t step) {
#if defined(__x86_64__)
  if constexpr (kVectorBytes == 64) {
    constexpr int64_t lanes = kLanes<T>;
    const int64_t shift = reinterpret_cast<uintptr_t>(to) / sizeof(T) % lanes;
    using index_t = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
    Vector<index_t> order;
    for (int64_t i = 0; i < lanes; ++i) order[i] = static_cast<index_t>((i - shift) & (lanes - 1));
    const uint64_t mask = lane_mask(begin, end, lanes);
    const auto store_line = [&](T* line, uint64_t here) {
      if ((here & lane_mask(0, lanes, lanes)) == 0) return;
#pragma GCC unroll 32
      for (int i = 0; i < kCount; ++i, line += step) {
        keep_in_register(line);
        if (i < count) store_lanes(line, permute<T, index_t>(rows[i], order), here);
      }
    };
    store_line(to - shift, mask << shift);
    store_line(to - shift + lanes, mask >> (lanes - shift));
    return;
  }
#endif
  store_rows<kCount>(rows, count, begin, end, to, step);
}

// The first n lanes of rows of elements.
template <typename plane_t, typename scalar_t>
void copy_rows(const scalar_t* from, int64_t from_step, int64_t rows, int64_t n, plane_t* to, int64_t to_step) {
  constexpr int64_t lanes = kLanes<plane_t>;
  if (n >= lanes) {
    for (int64_t r = 0; r < rows; ++r, from += from_step, to += to_step) store(to, load_elements<plane_t>(from));
    return;
  }
  for (int64_t r = 0; r < rows; ++r, from += from_step, to += to_step) {
    const Vector<plane_t> few = load_within<plane_t>(from, 0, n);
    store_rows<1>(&few, 1, 0, n, to, 0);
  }
}

// A vector of elements from the accumulators that it is made of.
template <typename scalar_t>
inline Vector<bits_type<scalar_t>> round_to_bits(const Vector<acc_type<scalar_t>>* values) {
  if constexpr (sizeof(scalar_t) == sizeof(acc_type<scalar_t>)) {
    return values[0];
  } else {
#if defined(__x86_64__)
    if constexpr (kHasBf16Dot && std::is_same_v<scalar_t, c10::BFloat16>) {
      return (Vector<uint16_t>)_mm512_cvtne2ps_pbh((__m512)values[1], (__m512)values[0]);
    }
#endif
    scalar_t rounded[2 * kLanes<float>];
    store_acc(rounded, values[0]);
    store_acc(rounded + kLanes<float>, values[1]);
    return load(reinterpret_cast<const uint16_t*>(rounded));
  }
}

// Asks for a line of each pixel of a row: those of the row to come, while this one is transposed.
template <typename T>
__attribute__((always_inline)) inline void ask_for_pixels(T* pixel, int64_t step, int64_t count) {
  for (int64_t i = 0; i < count; ++i, pixel += step) __builtin_prefetch(pixel, !std::is_const_v<T>);
}

// The transpose of a square of as many vectors as they have lanes.
template <typename T>
inline void transpose_elements(Vector<T>* square) {
  if constexpr (sizeof(T) == 2) {
    // Pairs of rows first, then twice the square of half the size whose elements are pairs.
    constexpr int64_t half = kLanes<uint32_t>;
    Vector<uint32_t> even[half], odd[half];
    for (int64_t i = 0; i < half; ++i) {
      const auto upper = (Vector<uint32_t>)square[2 * i], lower = (Vector<uint32_t>)square[2 * i + 1];
      even[i] = (upper & 0xffff) | lower << 16;
      odd[i] = upper >> 16 | (lower & 0xffff0000);
    }
    transpose_square<1, uint32_t>(even);
    transpose_square<1, uint32_t>(odd);
    for (int64_t i = 0; i < half; ++i) {
      square[2 * i] = (Vector<T>)even[i];
      square[2 * i + 1] = (Vector<T>)odd[i];
    }
  } else {
    transpose_square<1, T>(square);
  }
}

// At least `size` elements: an odd number of cache lines, so that neighbouring planes lie in different sets of a cache.
template <typename T>
constexpr int64_t plane_step(int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return ((size + kLine - 1) / kLine | 1) * kLine;
}

// Windows of the zero-padded planes of a block of channels: window w of a plane begins `step` columns behind window
// w - 1, and its rows, `width` long, follow each other without a gap.
template <typename scalar_t, typename plane_t>
class PlaneWindows {
 public:
  PlaneWindows(int64_t channels, int64_t rows, int64_t windows, int64_t step, int64_t width)
      : rows_(rows),
        windows_(windows),
        step_(step),
        width_(width),
        plane_(plane_step<plane_t>(windows * rows * width)),
        size_(channels * plane_),
        elements_(size_) {
    std::fill_n(elements_.get(), size_, plane_t(0));
  }

  int64_t width() const { return width_; }
  plane_t* window(int64_t channel, int64_t index) const {
    return elements_.get() + channel * plane_ + index * rows_ * width_;
  }

  // Fills the first `rows` rows from (row, column) of the planes of a tile's channels on.
  void fill(const Map<const scalar_t>& map, Extent size, const TileOfMap& tile, int64_t row, int64_t column,
            int64_t rows) {
    const int64_t begin = std::clamp<int64_t>(-row, 0, rows), end = std::clamp(size.h - row, begin, rows);
    // Zeros stay where they are as long as what is filled does.
    const std::array<int64_t, 4> filled = {begin, end, column, size.w};
    if (filled != filled_) {
      std::fill_n(elements_.get(), size_, plane_t(0));
      filled_ = filled;
    }
    if (map.channel_step == 1 && map.column_step != 1) {
      for (int64_t r = begin; r < end; ++r) {
        fill_across(map, map.pixel(tile.image, tile.channel, row + r, 0), size.w, tile.channels, column, r);
      }
      return;
    }
    for (int64_t c = 0; c < tile.channels; ++c) {
      const scalar_t* const from = map.pixel(tile.image, tile.channel + c, row + begin, 0);
      for (int64_t w = 0; w < windows_; ++w) {
        fill_along(map, from, size.w, column + w * step_, end - begin, window(c, w) + begin * width_);
      }
    }
  }

 private:
  static constexpr int64_t lanes = kLanes<plane_t>;

  // One window of `rows` rows of a plane.
  void fill_along(const Map<const scalar_t>& map, const scalar_t* from, int64_t size, int64_t column, int64_t rows,
                  plane_t* to) {
    if (map.column_step != 1) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < width_; ++i) {
          const bool outside = column + i < 0 || column + i >= size;
          to[r * width_ + i] =
              outside ? plane_t(0) : element_of<plane_t>(from[r * map.row_step + (column + i) * map.column_step]);
        }
      }
      return;
    }
    // What lies outside is zero already.
    const int64_t begin = std::max<int64_t>(0, -column), end = std::min(width_, size - column);
    for (int64_t i = begin; i < end; i += lanes) {
      copy_rows(from + column + i, map.row_step, rows, end - i, to + i, width_);
    }
  }

  void fill_across(const Map<const scalar_t>& map, const scalar_t* from, int64_t size, int64_t channels, int64_t column,
                   int64_t r) {
    const int64_t begin = std::max<int64_t>(column, 0);
    const int64_t end = std::min(size, column + (windows_ - 1) * step_ + width_);
    for (int64_t p = begin; p < end; p += lanes) {
      const int64_t pixels = std::min(lanes, end - p);
      for (int64_t first = 0; first < channels; first += lanes) {
        const int64_t count = std::min(lanes, channels - first);
        Vector<plane_t> square[lanes];
        const scalar_t* const here = from + p * map.column_step + first;
        load_rows<plane_t, lanes>(here, map.column_step, pixels, count, square);
        ask_for_pixels(here + map.row_step, map.column_step, pixels);
        transpose_elements<plane_t>(square);
        for (int64_t w = 0; w < windows_; ++w) {
          const int64_t at = p - column - w * step_;
          store_aligned_rows<lanes>(square, count, -at, std::min(pixels, width_ - at),
                                    window(first, w) + r * width_ + at, plane_);
        }
      }
    }
  }

  int64_t rows_, windows_, step_, width_, plane_, size_;
  std::array<int64_t, 4> filled_ = {};
  Scratch<plane_t> elements_;
};

// The inputs of `rows` rows of outputs of a tile.
template <typename scalar_t, typename plane_t>
class InputWindows : public PlaneWindows<scalar_t, plane_t> {
 public:
  InputWindows(const Correlation<scalar_t>& c, int64_t rows, int64_t windows, int64_t step, int64_t width)
      : PlaneWindows<scalar_t, plane_t>(plane_block(c), rows + c.kernel.h - 1, windows, step, width), c_(c) {}

  void fill_tile(const TileOfMap& tile) {
    this->fill(c_.x, c_.in, tile, tile.row - c_.offset.h, tile.column - c_.offset.w, tile.rows + c_.kernel.h - 1);
  }

 private:
  const Correlation<scalar_t>& c_;
};

// Stores the finished planes of a tile, whose rows are `pitch` elements apart, in a map with its channels side by side.
template <typename scalar_t>
void store_across(const bits_type<scalar_t>* planes, int64_t plane, int64_t pitch, const TileOfMap& tile,
                  const Map<scalar_t>& y) {
  using bits_t = bits_type<scalar_t>;
  constexpr int64_t lanes = kLanes<bits_t>;
  for (int64_t row = 0; row < tile.rows; ++row) {
    for (int64_t p = 0; p < tile.columns; p += lanes) {
      const int64_t pixels = std::min(lanes, tile.columns - p);
      for (int64_t first = 0; first < tile.channels; first += lanes) {
        const int64_t count = std::min(lanes, tile.channels - first);
        Vector<bits_t> square[lanes];
        load_rows<bits_t, lanes>(planes + first * plane + row * pitch + p, plane, count, pitch - p, square);
        transpose_elements<bits_t>(square);
        bits_t* const to =
            reinterpret_cast<bits_t*>(y.pixel(tile.image, tile.channel, tile.row + row, tile.column + p)) + first;
        ask_for_pixels(to + y.row_step, y.column_step, pixels);
        store_rows<lanes>(square, pixels, 0, count, to, y.column_step);
      }
    }
  }
}
