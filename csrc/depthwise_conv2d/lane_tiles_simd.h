// Tiles of maps with channels side by side in the lanes of a vector, from and to either memory format.
// Compiled once for each instruction set by foreach_isa.h, inside a namespace.

// Pixels of a row, or taps of two, that one step of the loops holds in registers: up to 24 accumulators of 32
// registers, 12 of 16.
constexpr int kBlockPixels = kVectorBytes == 64 ? 12 : 6;

// With the channels side by side in memory a task takes a few cache lines of each pixel.
constexpr int kNeighbours = 4;

// More rows or columns of zeros than there are around any map.
constexpr int64_t kWholeMargin = int64_t{1} << 40;

template <typename scalar_t>
int64_t blocks_of_task(const Correlation<scalar_t>& c) {
  return c.channels_last ? kNeighbours : 1;
}

template <typename scalar_t>
TileGrid lane_grid(const Correlation<scalar_t>& c) {
  return {c.batch, c.channels, blocks_of_task(c) * kLanes<acc_type<scalar_t>>, c.out, c.tile};
}

// A map whose planes follow each other without a gap as if the channels of a block were side by side: the same lines of
// memory, in another order. Other maps as they are.
template <int64_t kBlock, typename scalar_t>
Map<scalar_t> lines_of(Map<scalar_t> map, Extent size) {
  if (map.column_step == 1 && map.row_step == size.w && map.channel_step == size.h * size.w) {
    map.row_step = size.w * kBlock;
    map.column_step = kBlock;
  }
  return map;
}

// What the blocks of channels of a task ask for while their products run, a few rows of a tile: in the order of memory,
// where blocks are neighbours all vectors of a pixel before the next pixel. Lines that lie side by side come sooner
// than those that each block would ask for on its own.
class LinesAhead {
 public:
  // Rows from `row` of `tile` on, asked for by block `block` of a task that is `width` columns wide.
  template <typename scalar_t>
  LinesAhead(const Map<scalar_t>& map, const TileOfMap& tile, int64_t block, int64_t row, int64_t width) {
    constexpr int64_t lanes = kLanes<acc_type<scalar_t>>;
    together_ = map.channel_step == 1 && tile.channels == kNeighbours * lanes;
    const int64_t channel = tile.channel + (together_ ? 0 : block * lanes), size = sizeof(scalar_t);
    data_ = reinterpret_cast<const char*>(map.pixel(tile.image, channel, tile.row + row, tile.column));
    row_step_ = map.row_step * size;
    pixel_step_ = map.column_step * size;
    vector_step_ = together_ ? lanes * size : pixel_step_;
    first_ = together_ ? block * whole_pixels(width) : 0;
  }

  // Nothing but a line that is there.
  explicit LinesAhead(const void* line) : data_(static_cast<const char*>(line)) {}

  // What is asked for beside other rows and columns.
  LinesAhead moved(int64_t rows, int64_t columns) const {
    LinesAhead lines = *this;
    lines.data_ += rows * row_step_;
    lines.first_ += columns;
    return lines;
  }

  // Beside a block of outputs, from column `column` on.
  Ahead at(int64_t column) const {
    const int64_t index = first_ + column, pixel = together_ ? index / kNeighbours : index;
    const int64_t vector = together_ ? index % kNeighbours : 0;
    return {data_ + pixel * pixel_step_ + vector * vector_step_, row_step_, vector_step_};
  }

 private:
  // A block of outputs asks for some vectors of one pixel.
  static int64_t whole_pixels(int64_t width) { return (width + kNeighbours - 1) / kNeighbours * kNeighbours; }

  const char* data_;
  bool together_ = false;
  int64_t row_step_ = 0, pixel_step_ = 0, vector_step_ = 0, first_ = 0;
};

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

// kLanes elements as accumulators, or as the bits of elements of two bytes: alone, or as the lower halves of units.
template <typename lane_t, typename scalar_t>
inline Vector<lane_t> load_elements(const scalar_t* from) {
  if constexpr (std::is_same_v<lane_t, uint16_t>) {
    return load(reinterpret_cast<const uint16_t*>(from));
  } else if constexpr (std::is_same_v<lane_t, uint32_t>) {
    return load_bits(from);
  } else {
    return load_as_acc(from);
  }
}

template <typename lane_t, typename scalar_t>
inline lane_t element_of(scalar_t value) {
  if constexpr (std::is_integral_v<lane_t>) {
    return c10::bit_cast<uint16_t>(value);
  } else {
    return static_cast<lane_t>(value);
  }
}

// `pixels` pixels of a row, the channels of a block side by side; zeros behind the last channel.
template <typename lane_t, typename scalar_t>
void load_pixels(const Map<const scalar_t>& map, const scalar_t* from, int64_t channels, int64_t pixels, lane_t* to) {
  constexpr int64_t lanes = kLanes<lane_t>;
  if (map.channel_step == 1 && channels == lanes) {
    const int64_t step = map.column_step;
    for (int64_t p = 0; p < pixels; ++p) store(to + p * lanes, load_elements<lane_t>(from + p * step));
    return;
  }
  if (map.column_step == 1 && pixels >= lanes) {
    for (int64_t next = 0; next < pixels; next += lanes) {
      // The last square may overlap the one before it.
      const int64_t p = std::min(next, pixels - lanes);
      Vector<lane_t> square[lanes];
      for (int64_t c = 0; c < lanes; ++c) {
        square[c] = c < channels ? load_elements<lane_t>(from + c * map.channel_step + p) : Vector<lane_t>{};
      }
      transpose_square<1, lane_t>(square);
      for (int64_t i = 0; i < lanes; ++i) store(to + (p + i) * lanes, square[i]);
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      to[p * lanes + c] = element_of<lane_t>(from[c * map.channel_step + p * map.column_step]);
    }
    std::fill(to + p * lanes + channels, to + (p + 1) * lanes, lane_t(0));
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
// phases, so that the steps of a stride or of a dilation are neighbours. Of the zeros around the plane only `margin`
// rows and columns are there, and without phases the tile has no more room.
template <typename scalar_t, typename operand_t>
class PaddedTile {
 public:
  using unit_t = unit_type<operand_t>;
  static constexpr int64_t lanes = kLanes<unit_t>;

  // size: of the tile with all of its zeros.
  PaddedTile(Extent size, Extent plane, int64_t phases, int64_t pair_step, Extent margin)
      : size_(size),
        plane_(plane),
        margin_(margin),
        phases_(phases),
        run_(phases == 1 ? std::min(size.w, plane.w + 2 * margin.w) : (size.w + phases - 1) / phases),
        pair_step_(kUnitDepth<operand_t> == 2 ? pair_step : 0),
        units_(std::min(size.h, plane.h + 2 * margin.h) * phases * run_ * lanes),
        natural_((size.w + pair_step_) * lanes),
        few_(size.w * lanes) {}

  // From now on its first pixel is (row, column) of the plane.
  void move_to(int64_t row, int64_t column) {
    first_ = {there(row, size_.h, plane_.h, margin_.h).begin, phases_ == 1 ? columns(column).begin : 0};
  }

  // The columns that are there, from column `first` of a plane on.
  Range columns(int64_t first) const { return there(first, size_.w, plane_.w, margin_.w); }

  // Whether the units of a row are those of its pixels, one after another, each with the next one where it has two.
  bool is_natural() const { return phases_ == 1 && pair_step_ <= 1; }

  // In units.
  int64_t row_step() const { return phases_ * run_ * lanes; }
  int64_t offset(int64_t column) const { return (column % phases_ * run_ + column / phases_) * lanes; }
  // Where column 0 of a row would be.
  unit_t* row(int64_t index) const { return units_.get() + (index - first_.h) * row_step() - first_.w * lanes; }

  // Fills row `index` with the pixels of a row of the plane and zeros around them, from column `first` on: without
  // phases and pairs.
  void fill(int64_t index, const unit_t* pixels, int64_t first) {
    unit_t* const to = row(index);
    const int64_t width = plane_.w;
    const Range there = columns(first);
    const int64_t begin = std::clamp(-first, there.begin, there.end), end = std::clamp(width - first, begin, there.end);
    std::fill(to + there.begin * lanes, to + begin * lanes, unit_t(0));
    std::copy(pixels + (begin + first) * lanes, pixels + (end + first) * lanes, to + begin * lanes);
    std::fill(to + end * lanes, to + there.end * lanes, unit_t(0));
  }

  // Fills row `index` from (row, first_column) of a plane on, zeros outside of it. The plane is a map with spread - 1
  // zeros between its elements.
  void fill(int64_t index, const Map<const scalar_t>& map, Extent size, Extent spread, const TileOfMap& tile,
            int64_t row, int64_t first_column) {
    unit_t* const to = this->row(index);
    if (row < 0 || row % spread.h != 0 || row / spread.h >= size.h) {
      std::fill_n(to + first_.w * lanes, row_step(), unit_t(0));
      return;
    }
    const Range there = columns(first_column);
    const scalar_t* const from = map.pixel(tile.image, tile.channel, row / spread.h, 0);
    if constexpr (kUnitDepth<operand_t> == 1) {
      if (phases_ == 1) return fill_row(map, from, size.w, spread.w, tile.channels, first_column, there, to);
    }
    fill_row(map, from, size.w, spread.w, tile.channels, first_column, there, natural_.get());
    place(there, to);
  }

 private:
  // One row of the plane, the columns of it that are there, in their natural order.
  void fill_row(const Map<const scalar_t>& map, const scalar_t* from, int64_t width, int64_t spread, int64_t channels,
                int64_t first, Range there, unit_t* to) {
    const int64_t begin = std::min(steps_to(first, spread), width);
    const int64_t end = std::clamp(steps_to(first + size_.w, spread), begin, width);
    if (begin == end) {
      std::fill(to + there.begin * lanes, to + there.end * lanes, unit_t(0));
    } else if (spread == 1) {
      std::fill(to + there.begin * lanes, to + (begin - first) * lanes, unit_t(0));
      load_pixels(map, from + begin * map.column_step, channels, end - begin, to + (begin - first) * lanes);
      std::fill(to + (end - first) * lanes, to + there.end * lanes, unit_t(0));
    } else {
      load_pixels(map, from + begin * map.column_step, channels, end - begin, few_.get());
      std::fill(to + there.begin * lanes, to + there.end * lanes, unit_t(0));
      for (int64_t i = begin; i < end; ++i) {
        store(to + (i * spread - first) * lanes, load(few_.get() + (i - begin) * lanes));
      }
    }
  }

  // The natural row as units, in runs.
  void place(Range there, unit_t* to) {
    unit_t* const natural = natural_.get();
    std::fill_n(natural + there.end * lanes, pair_step_ * lanes, unit_t(0));
    for (int64_t q = there.begin; q < there.end; ++q) {
      Vector<unit_t> unit = load(natural + q * lanes);
      if constexpr (kUnitDepth<operand_t> == 2) unit |= load(natural + (q + pair_step_) * lanes) << 16;
      store(to + offset(q), unit);
    }
  }

  // Of `size` rows or columns from `first` of a plane on, those that are there.
  static Range there(int64_t first, int64_t size, int64_t plane, int64_t margin) {
    const int64_t begin = std::clamp<int64_t>(-first - margin, 0, size);
    return {begin, std::clamp(plane - first + margin, begin, size)};
  }

  Extent size_, plane_, margin_;
  int64_t phases_, run_, pair_step_;
  Extent first_ = {0, 0};
  Scratch<unit_t> units_, natural_, few_;
};

// The inputs of a tile of outputs, for every block of channels of a task, row by row: in channels_last the blocks of a
// pixel are neighbours and pixels lie far apart, so that one block at a time would look up every pixel's page anew.
template <typename scalar_t, typename operand_t>
class TileGroup {
 public:
  // outputs: those that are made; the last ones may lie beside the tile. margin: the zeros around the map that are
  // read.
  TileGroup(const Correlation<scalar_t>& c, Extent outputs, int64_t phases, int64_t pair_step, Extent margin)
      : c_(c), margin_(margin.h), lines_(c.x) {
    for (int64_t block = 0; block < blocks_of_task(c); ++block) {
      tiles_.emplace_back(Extent{input_size(outputs.h, c.stride.h, c.kernel.h, c.dilation.h),
                                 input_size(outputs.w, c.stride.w, c.kernel.w, c.dilation.w)},
                          c.plane(), phases, pair_step, margin);
    }
    if (!takes_planes()) return;
    pixels_ = Scratch<unit_t>(std::min(rows_under(outputs.h), c.in.h) * c.in.w * lanes);
    if (c.tile.h == c.out.h) lines_ = lines_of<lanes>(c.x, c.in);
  }

  // What block `block` of a task asks for of the inputs of the next one, beside its outputs from row `row` on.
  LinesAhead ahead(const TileOfMap& next, int64_t block, int64_t row) const {
    return LinesAhead(lines_, next, block, row, c_.tile.w);
  }

  const PaddedTile<scalar_t, operand_t>& operator[](int64_t block) const { return tiles_[block]; }

  // How many rows of inputs the first rows of outputs reach over.
  int64_t rows_under(int64_t outputs) const { return input_size(outputs, c_.stride.h, c_.kernel.h, c_.dilation.h); }

  // The inputs of `step` rows of outputs of a tile from row `row` on; those of the step before it are there.
  void bring(const TileOfMap& tile, int64_t row, int64_t step) {
    fill(tile, row == 0 ? 0 : rows_under(row), rows_under(row + step));
  }

  // Rows [begin, end) of the inputs of a tile.
  void fill(const TileOfMap& tile, int64_t begin, int64_t end) {
    const int64_t row = tile.row * c_.stride.h - c_.offset.h, column = tile.column * c_.stride.w - c_.offset.w;
    const bool together = c_.x.channel_step == 1 && tile.channels == kNeighbours * lanes && c_.spread.h == 1 &&
                          c_.spread.w == 1 && tiles_[0].is_natural();
    const int64_t last = c_.plane().h - 1;
    for (auto& padded : tiles_) padded.move_to(row, column);
    if (pixels_.get() != nullptr) return fill_from_planes(tile, std::max(begin, -row), std::min(end, c_.in.h - row));
    for (int64_t r = std::max(begin, -margin_ - row); r < std::min(end, last + margin_ + 1 - row); ++r) {
      const bool outside = row + r < 0 || row + r > last;
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
  using unit_t = unit_type<operand_t>;
  static constexpr int64_t lanes = kLanes<unit_t>;

  // Whether tiles are all columns of planes whose rows follow each other without a gap and are no whole vectors, and
  // none of what else a row may need.
  bool takes_planes() const {
    return kUnitDepth<operand_t> == 1 && tiles_[0].is_natural() && margin_ == 0 && c_.spread.h == 1 &&
           c_.spread.w == 1 && c_.x.column_step == 1 && c_.x.row_step == c_.in.w && c_.tile.w == c_.out.w &&
           c_.in.w > 1 && c_.in.w % lanes != 0;
  }

  // Rows [begin, end) of the inputs of a tile, of which no one is padding: their pixels are one long row.
  void fill_from_planes(const TileOfMap& tile, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const int64_t row = tile.row * c_.stride.h - c_.offset.h;
    load_pixels(c_.x, c_.x.pixel(tile.image, tile.channel, row + begin, 0), tile.channels, (end - begin) * c_.in.w,
                pixels_.get());
    for (int64_t r = begin; r < end; ++r) {
      tiles_[0].fill(r, pixels_.get() + (r - begin) * c_.in.w * lanes, -c_.offset.w);
    }
  }

  // Row `row` of a map, from `column` on, as row `index` of the tiles: all channels of a pixel before the next pixel.
  void fill_together(const TileOfMap& tile, int64_t index, int64_t row, int64_t column) {
    constexpr bool kPairs = kUnitDepth<operand_t> == 2;
    const Range there = tiles_[0].columns(column);
    const int64_t first = std::clamp(-column, there.begin, there.end);
    const int64_t last = std::clamp(c_.in.w - column, first, there.end);
    unit_t* to[kNeighbours];
    Vector<unit_t> before[kNeighbours] = {};
    for (int block = 0; block < kNeighbours; ++block) {
      to[block] = tiles_[block].row(index);
      std::fill(to[block] + there.begin * lanes, to[block] + first * lanes, unit_t(0));
      std::fill(to[block] + last * lanes, to[block] + there.end * lanes, unit_t(0));
    }
    const scalar_t* from = c_.x.pixel(tile.image, tile.channel, row, column + first);
    for (int64_t p = first; p < last; ++p, from += c_.x.column_step) {
#pragma GCC unroll 4
      for (int block = 0; block < kNeighbours; ++block) {
        const Vector<unit_t> pixel = load_elements<unit_t>(from + block * lanes);
        if constexpr (kPairs) {
          if (p > there.begin) store(to[block] + (p - 1) * lanes, before[block] | pixel << 16);
          before[block] = pixel;
        } else {
          store(to[block] + p * lanes, pixel);
        }
      }
    }
    if (!kPairs || first == last) return;
    for (int block = 0; block < kNeighbours; ++block) store(to[block] + (last - 1) * lanes, before[block]);
  }

  const Correlation<scalar_t>& c_;
  int64_t margin_;  // rows
  Map<const scalar_t> lines_;
  Scratch<unit_t> pixels_;
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
