// Tiles of channels, their rows as accumulators, and sums over parts of the tasks.
// Compiled once for each instruction set by foreach_isa.h after vector_simd.h, inside a namespace.

// The columns of one image that one task works on.
struct Tile {
  int64_t image, first, columns;  // channels [first, first + columns)
  int64_t width;                  // columns, rounded up to whole vectors

  template <typename acc_t>
  static Tile of(const Tiling& tiles, int64_t index) {
    const int64_t first = index % tiles.per_image() * tiles.columns;
    const int64_t columns = std::min(tiles.columns, tiles.channels - first);
    return {index / tiles.per_image(), first, columns, whole_vectors<acc_t>(columns)};
  }
};

// A row of a tensor with its columns in whole vectors side by side: itself where it is so, else a copy.
template <typename scalar_t>
const scalar_t* whole_row(const scalar_t* row, int64_t step, int64_t columns, scalar_t* copy) {
  if (step == 1 && columns % kLanes<acc_type<scalar_t>> == 0) return row;
  for (int64_t i = 0; i < columns; ++i) copy[i] = row[i * step];
  return copy;
}

// A tile takes a few cache lines of each row, a pattern that hardware prefetchers miss.
template <typename scalar_t>
void prefetch_row(const Rows<const scalar_t>& from, const Tile& tile, int64_t row) {
  constexpr int64_t kRowsAhead = 16, kLine = 64 / sizeof(scalar_t);
  if (from.column_step != 1) return;
  const scalar_t* const ahead = from.row(tile.image, row + kRowsAhead) + tile.first;
  for (int64_t i = 0; i < tile.columns; i += kLine) __builtin_prefetch(ahead + i);
}

// Rows side by side, from which products take their operands: (r, c) is a vector of row r, from column c on.
template <typename scalar_t>
struct RowBlock {
  const scalar_t* data;
  int64_t step;

  Vector<acc_type<scalar_t>> operator()(int64_t r, int64_t c) const { return load_as_acc(data + r * step + c); }
};

// Those of a tensor. Each access fetches its element of a block ahead, as hardware does not know this pattern.
template <typename scalar_t>
struct TensorRows {
  RowBlock<scalar_t> rows;

  Vector<acc_type<scalar_t>> operator()(int64_t r, int64_t c) const {
    constexpr int64_t kRowsAhead = 36;
    __builtin_prefetch(rows.data + (r + kRowsAhead) * rows.step + c);
    return rows(r, c);
  }
};

// Rows [first, first + rows) of a tensor's tile, with zeros up to the tile's width: where they lie if they can be read
// in whole vectors, else copied.
template <typename scalar_t>
TensorRows<scalar_t> view_rows(const Rows<const scalar_t>& from, const Tile& tile, int64_t first, int64_t rows,
                               scalar_t* copies) {
  const scalar_t* const data = from.row(tile.image, first) + tile.first * from.column_step;
  if (from.column_step == 1 && tile.columns == tile.width) return {{data, from.row_step}};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < tile.columns; ++i)
      copies[r * tile.width + i] = data[r * from.row_step + i * from.column_step];
    std::fill(copies + r * tile.width + tile.columns, copies + (r + 1) * tile.width, scalar_t(0));
  }
  return {{copies, tile.width}};
}

// Rows [first, first + rows) of a tensor's tile as accumulators; zeros up to the tile's width.
template <typename scalar_t>
void load_rows(const Rows<const scalar_t>& from, const Tile& tile, int64_t first, int64_t rows,
               acc_type<scalar_t>* to) {
  for (int64_t r = 0; r < rows; ++r, to += tile.width) {
    const scalar_t* const row = from.row(tile.image, first + r) + tile.first * from.column_step;
    prefetch_row(from, tile, first + r);
    load_row(row, from.column_step, tile.columns, to);
    std::fill(to + tile.columns, to + tile.width, acc_type<scalar_t>(0));
  }
}

template <typename scalar_t>
void store_rows(const acc_type<scalar_t>* from, const Rows<scalar_t>& to, const Tile& tile, int64_t first,
                int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    store_row(to.row(tile.image, first + r) + tile.first, tile.columns, from + r * tile.width);
  }
}

// Whether a contiguous tensor is stored past the caches.
template <typename scalar_t>
bool is_streamed(const Rows<scalar_t>& to, int64_t elements, int64_t channels) {
  constexpr int64_t kVector = kLanes<acc_type<scalar_t>> * sizeof(scalar_t);
  return elements * static_cast<int64_t>(sizeof(scalar_t)) >= kStreamedBytes &&
         channels * sizeof(scalar_t) % kVector == 0 && reinterpret_cast<uintptr_t>(to.data) % kVector == 0;
}

// A row of `to` from that of `from`: f(i, elements from channel i of the tile on). `copies` has room for two rows.
template <typename scalar_t, typename F>
void map_row(const Rows<const scalar_t>& from, const Rows<scalar_t>& to, const Tile& tile, int64_t row,
             scalar_t* copies, bool streamed, const F& f) {
  constexpr int64_t lanes = kLanes<acc_type<scalar_t>>;
  const scalar_t* const in =
      whole_row(from.row(tile.image, row) + tile.first * from.column_step, from.column_step, tile.columns, copies);
  scalar_t* const out = to.row(tile.image, row) + tile.first;
  if (streamed) {
    for (int64_t i = 0; i < tile.width; i += lanes) stream_acc(out + i, f(i, load_as_acc(in + i)));
    return;
  }
  scalar_t* const whole = tile.columns == tile.width ? out : copies + tile.width;
  for (int64_t i = 0; i < tile.width; i += lanes) store_acc(whole + i, f(i, load_as_acc(in + i)));
  if (whole != out) std::copy_n(whole, tile.columns, out);
}

// Rows [first, first + rows), few enough for their accumulators to stay in the first-level cache.
struct RowRange {
  int64_t first, rows;
};

// Calls f(first, rows) for all blocks of rows.
template <typename Product, typename F>
void for_row_blocks(int64_t rows, const F& f) {
  constexpr int64_t kMost = Product::kTileRows;
  for (int64_t first = 0; first < rows; first += kMost) f(first, std::min(kMost, rows - first));
}

// Calls f(block, past) for all blocks of rows, each with the one before it, and for no rows after the last.
template <typename Product, typename F>
void for_row_blocks_and_past(int64_t rows, const F& f) {
  RowRange past{};
  for_row_blocks<Product>(rows, [&](int64_t first, int64_t here) {
    f(RowRange{first, here}, past);
    past = {first, here};
  });
  f(RowRange{}, past);
}

// Where a product leaves its blocks of rows: in turn, where the one before is worked on in the meantime.
template <typename Product>
class ProductBlocks {
 public:
  using acc_t = typename Product::acc_t;

  // Half a page more than a block: whole pages apart, loads from one would wait for stores to the other.
  explicit ProductBlocks(int64_t columns)
      : size_(Product::kTileRows * columns + 512), blocks_(Product::kBlocks * size_) {}

  acc_t* at(const RowRange& rows) const {
    return blocks_.get() + rows.first / Product::kTileRows % Product::kBlocks * size_;
  }

 private:
  int64_t size_;
  Scratch<acc_t> blocks_;
};

// Calls f(part, begin, end) for fixed parts of the tasks: what each adds up does not depend on the threads' timing.
template <typename F>
void in_parts(int64_t tasks, int64_t parts, const F& f) {
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) f(part, part * tasks / parts, (part + 1) * tasks / parts);
  });
}

// Adds up what tasks [begin, end) give: run(index, first, sums) adds to sums, or overwrites them if it is the first. Of
// many tasks the sums of groups are added up, as in a single long sum of float32 digits would be lost.
template <typename Sums, typename Make, typename F>
void sum_tasks(int64_t begin, int64_t end, Sums& total, const Make& make_sums, const F& run) {
  constexpr int64_t kLongest = 32;
  const int64_t tasks = end - begin;
  const int64_t group = tasks <= kLongest ? tasks : static_cast<int64_t>(std::ceil(std::sqrt(tasks)));
  const auto run_group = [&](int64_t first, Sums& sums) {
    for (int64_t index = first; index < std::min(first + group, end); ++index) run(index, index == first, sums);
  };
  run_group(begin, total);
  if (tasks == group) return;
  Sums few = make_sums();
  for (int64_t first = begin + group; first < end; first += group) {
    run_group(first, few);
    for (int64_t i = 0; i < total.size; ++i) total.all.get()[i] += few.all.get()[i];
  }
}

// to (rows, columns) = a matrix (rows, ld) of all parts, added in their order. Overwrites that of the first.
template <typename scalar_t, typename Part>
void sum_parts(const std::vector<Part>& parts, acc_type<scalar_t>* Part::* matrix, int64_t rows, int64_t columns,
               int64_t ld, scalar_t* to) {
  if (to == nullptr) return;
  at::parallel_for(0, rows, rows_per_task(columns * static_cast<int64_t>(parts.size())),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t row = begin; row < end; ++row) {
                       acc_type<scalar_t>* const total = parts[0].*matrix + row * ld;
                       for (size_t part = 1; part < parts.size(); ++part) {
                         const acc_type<scalar_t>* const more = parts[part].*matrix + row * ld;
                         for (int64_t i = 0; i < columns; ++i) total[i] += more[i];
                       }
                       store_row(to + row * columns, columns, total);
                     }
                   });
}
