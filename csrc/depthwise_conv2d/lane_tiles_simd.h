// Tiles of maps with channels side by side in the lanes of a vector, from and to either memory format.
// Compiled once for each instruction set by foreach_isa.h, inside a namespace.

// Pixels of a row, or taps of two, that one step of the loops holds in registers: up to 24 accumulators of 32
// registers, 12 of 16.
constexpr int kBlockPixels = kVectorBytes == 64 ? 12 : 6;

// With the channels side by side in memory a task takes a few cache lines of each pixel.
constexpr int kNeighbours = 4;

template <typename scalar_t>
int64_t blocks_of_task(const Correlation<scalar_t>& c) {
  return c.channels_last ? kNeighbours : 1;
}

template <typename scalar_t>
TileGrid lane_grid(const Correlation<scalar_t>& c) {
  return {c.batch, c.channels, blocks_of_task(c) * kLanes<acc_type<scalar_t>>, c.out, c.tile};
}

// Calls f(block, part) for the parts of a tile that are a vector of channels wide.
template <typename scalar_t, typename F>
void for_channel_blocks(const TileOfMap& tile, const F& f) {
  constexpr int64_t lanes = kLanes<acc_type<scalar_t>>;
  TileOfMap part = tile;
  for (int64_t block = 0; block * lanes < tile.channels; ++block) {
    part.channel = tile.channel + block * lanes;
    part.channels = std::min(lanes, tile.channels - block * lanes);
    f(block, part);
  }
}

// `pixels` pixels of a row, the channels of a block side by side, as accumulators; zeros behind the last channel.
template <typename scalar_t>
void load_pixels(const Map<const scalar_t>& map, const scalar_t* from, int64_t channels, int64_t pixels,
                 acc_type<scalar_t>* to) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  if (map.channel_step == 1 && channels == lanes) {
    const int64_t step = map.column_step;
    for (int64_t p = 0; p < pixels; ++p) store(to + p * lanes, load_as_acc(from + p * step));
    return;
  }
  if (map.column_step == 1 && pixels >= lanes) {
    for (int64_t next = 0; next < pixels; next += lanes) {
      // The last square may overlap the one before it.
      const int64_t p = std::min(next, pixels - lanes);
      Vector<acc_t> square[lanes];
      for (int64_t c = 0; c < lanes; ++c) {
        square[c] = c < channels ? load_as_acc(from + c * map.channel_step + p) : Vector<acc_t>{};
      }
      transpose_square<1, acc_t>(square);
      for (int64_t i = 0; i < lanes; ++i) store(to + (p + i) * lanes, square[i]);
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      to[p * lanes + c] = static_cast<acc_t>(from[c * map.channel_step + p * map.column_step]);
    }
    std::fill(to + p * lanes + channels, to + (p + 1) * lanes, acc_t(0));
  }
}

// The way back; `map` is dense.
template <typename scalar_t>
void store_pixels(const acc_type<scalar_t>* from, int64_t channels, int64_t pixels, const Map<scalar_t>& map,
                  scalar_t* to) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  if (map.column_step == 1 && pixels >= lanes) {
    for (int64_t next = 0; next < pixels; next += lanes) {
      const int64_t p = std::min(next, pixels - lanes);
      Vector<acc_t> square[lanes];
      for (int64_t i = 0; i < lanes; ++i) square[i] = load(from + (p + i) * lanes);
      transpose_square<1, acc_t>(square);
      for (int64_t c = 0; c < channels; ++c) store_acc(to + c * map.channel_step + p, square[c]);
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      to[c * map.channel_step + p * map.column_step] = static_cast<scalar_t>(from[p * lanes + c]);
    }
  }
}

// A zero-padded tile of a block of channels: pixels in rows, as units of a product. A unit of two elements holds a
// pixel and the one `pair_step` columns behind it. Columns lie in `phases` runs, column q at q / phases of run q %
// phases, so that the steps of a stride or of a dilation are neighbours.
template <typename scalar_t, typename operand_t>
class PaddedTile {
 public:
  using acc_t = acc_type<scalar_t>;
  using unit_t = unit_type<operand_t>;
  static constexpr int64_t lanes = kLanes<acc_t>;

  PaddedTile(int64_t rows, int64_t columns, int64_t phases, int64_t pair_step)
      : columns_(columns),
        phases_(phases),
        run_((columns + phases - 1) / phases),
        pair_step_(kUnitDepth<operand_t> == 2 ? pair_step : 0),
        units_(rows * phases * run_ * lanes),
        natural_((columns + pair_step_) * lanes),
        few_(columns * lanes) {}

  int64_t columns() const { return columns_; }
  // Whether the units of a row are its pixels, one after another.
  bool is_natural() const { return phases_ == 1 && std::is_same_v<unit_t, acc_t>; }

  // In units.
  int64_t row_step() const { return phases_ * run_ * lanes; }
  int64_t offset(int64_t column) const { return (column % phases_ * run_ + column / phases_) * lanes; }
  unit_t* row(int64_t index) const { return units_.get() + index * row_step(); }

  // Fills row `index` from (row, first_column) of a plane on, zeros outside of it. The plane is a map with spread - 1
  // zeros between its elements.
  void fill(int64_t index, const Map<const scalar_t>& map, Extent size, Extent spread, const TileOfMap& tile,
            int64_t row, int64_t first_column) {
    unit_t* const to = units_.get() + index * row_step();
    if (row < 0 || row % spread.h != 0 || row / spread.h >= size.h) {
      std::fill_n(to, row_step(), unit_t(0));
      return;
    }
    const scalar_t* const from = map.pixel(tile.image, tile.channel, row / spread.h, 0);
    if constexpr (std::is_same_v<unit_t, acc_t>) {
      if (phases_ == 1) return fill_row(map, from, size.w, spread.w, tile.channels, first_column, to);
    }
    fill_row(map, from, size.w, spread.w, tile.channels, first_column, natural_.get());
    place(to);
  }

 private:
  // One row of the plane, `columns_` pixels of it, in their natural order.
  void fill_row(const Map<const scalar_t>& map, const scalar_t* from, int64_t width, int64_t spread, int64_t channels,
                int64_t first, acc_t* to) {
    const auto up = [&](int64_t column) { return column <= 0 ? 0 : (column + spread - 1) / spread; };
    const int64_t begin = std::min(up(first), width), end = std::clamp(up(first + columns_), begin, width);
    if (begin == end) {
      std::fill_n(to, columns_ * lanes, acc_t(0));
    } else if (spread == 1) {
      std::fill_n(to, (begin - first) * lanes, acc_t(0));
      load_pixels(map, from + begin * map.column_step, channels, end - begin, to + (begin - first) * lanes);
      std::fill(to + (end - first) * lanes, to + columns_ * lanes, acc_t(0));
    } else {
      load_pixels(map, from + begin * map.column_step, channels, end - begin, few_.get());
      std::fill_n(to, columns_ * lanes, acc_t(0));
      for (int64_t i = begin; i < end; ++i) {
        store(to + (i * spread - first) * lanes, load(few_.get() + (i - begin) * lanes));
      }
    }
  }

  // The natural row as units, in runs.
  void place(unit_t* to) {
    acc_t* const natural = natural_.get();
    std::fill_n(natural + columns_ * lanes, pair_step_ * lanes, acc_t(0));
    for (int64_t q = 0; q < columns_; ++q) {
      const Vector<acc_t> pixel = load(natural + q * lanes);
      if constexpr (kUnitDepth<operand_t> == 2) {
        store(to + offset(q), round_to_units<operand_t>(pixel, load(natural + (q + pair_step_) * lanes)));
      } else {
        store(to + offset(q), pixel);
      }
    }
  }

  int64_t columns_, phases_, run_, pair_step_;
  Scratch<unit_t> units_;
  Scratch<acc_t> natural_, few_;
};

// The inputs of a tile of outputs, for every block of channels of a task, row by row: in channels_last the blocks of a
// pixel are neighbours and pixels lie far apart, so that one block at a time would look up every pixel's page anew.
template <typename scalar_t, typename operand_t>
class TileGroup {
 public:
  // step: rows of outputs that are made at once, so that the last of them may lie below the tile.
  TileGroup(const Correlation<scalar_t>& c, int64_t step, int64_t phases, int64_t pair_step) : c_(c) {
    for (int64_t block = 0; block < blocks_of_task(c); ++block) {
      tiles_.emplace_back(input_size((c.tile.h + step - 1) / step * step, c.stride.h, c.kernel.h, c.dilation.h),
                          input_size(c.tile.w, c.stride.w, c.kernel.w, c.dilation.w), phases, pair_step);
    }
  }

  const PaddedTile<scalar_t, operand_t>& operator[](int64_t block) const { return tiles_[block]; }

  // How many rows of inputs the first rows of outputs reach over.
  int64_t rows_under(int64_t outputs) const { return input_size(outputs, c_.stride.h, c_.kernel.h, c_.dilation.h); }

  // Rows [begin, end) of the inputs of a tile.
  void fill(const TileOfMap& tile, int64_t begin, int64_t end) {
    const int64_t row = tile.row * c_.stride.h - c_.offset.h, column = tile.column * c_.stride.w - c_.offset.w;
    const bool together = c_.x.channel_step == 1 && tile.channels == kNeighbours * lanes && c_.spread.h == 1 &&
                          c_.spread.w == 1 && tiles_[0].is_natural();
    for (int64_t r = begin; r < end; ++r) {
      const bool outside = row + r < 0 || row + r >= c_.in.h;
      if (together && !outside) {
        fill_together(tile, r, row + r, column);
        continue;
      }
      for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
        tiles_[block].fill(r, c_.x, c_.in, c_.spread, part, row + r, column);
      });
    }
  }

 private:
  using acc_t = acc_type<scalar_t>;
  static constexpr int64_t lanes = kLanes<acc_t>;

  // Row `row` of a map, from `column` on, as row `index` of the tiles: all channels of a pixel before the next pixel.
  void fill_together(const TileOfMap& tile, int64_t index, int64_t row, int64_t column) {
    if constexpr (std::is_same_v<unit_type<operand_t>, acc_t>) {
      const int64_t columns = tiles_[0].columns();
      const int64_t first = std::clamp<int64_t>(-column, 0, columns);
      const int64_t last = std::clamp(c_.in.w - column, first, columns);
      acc_t* to[kNeighbours];
      for (int block = 0; block < kNeighbours; ++block) {
        to[block] = tiles_[block].row(index);
        std::fill_n(to[block], first * lanes, acc_t(0));
        std::fill(to[block] + last * lanes, to[block] + columns * lanes, acc_t(0));
      }
      const scalar_t* from = c_.x.pixel(tile.image, tile.channel, row, column + first);
      for (int64_t p = first; p < last; ++p, from += c_.x.column_step) {
#pragma GCC unroll 4
        for (int block = 0; block < kNeighbours; ++block) {
          store(to[block] + p * lanes, load_as_acc(from + block * lanes));
        }
      }
    }
  }

  const Correlation<scalar_t>& c_;
  std::vector<PaddedTile<scalar_t, operand_t>> tiles_;
};

constexpr auto kAllBlocks = std::make_integer_sequence<int, kBlockPixels>{};

// Calls f(first, size) for blocks of at most kBlockPixels, as even as they can be.
template <typename F>
void for_blocks(int64_t size, const F& f) {
  const int64_t blocks = (size + kBlockPixels - 1) / kBlockPixels;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * size / blocks;
    f(first, (block + 1) * size / blocks - first);
  }
}

// sums[lane] += the sum of f(pixel): short sums in the accumulator's type, the rest in float64.
template <typename acc_t, typename F>
void add_pixels(int64_t pixels, const F& f, double* sums) {
  constexpr int64_t lanes = kLanes<acc_t>, kFew = 16;
  for (int64_t first = 0; first < pixels; first += kFew) {
    Vector<acc_t> few{};
    for (int64_t p = first; p < std::min(first + kFew, pixels); ++p) few += f(p);
    for (int64_t lane = 0; lane < lanes; ++lane) sums[lane] += few[lane];
  }
}
