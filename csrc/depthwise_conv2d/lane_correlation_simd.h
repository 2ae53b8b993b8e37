// The gradients of weight and bias: taps in registers, pixels of a tile one after another.
// Compiled once for each instruction set by foreach_isa.h after lane_tiles_simd.h, inside a namespace.

// Adds to kTaps taps of kRows rows of the kernel what dz gives in rows `rows`. offsets: where each unit of a row of dz
// finds the inputs under the first tap. Above the first and below the last row of dz are zeros.
template <typename operand_t, int kRows, int kTaps>
void correlate_block(const unit_type<operand_t>* x, int64_t x_row, const unit_type<operand_t>* dz, int64_t dz_row,
                     const int64_t* offsets, int64_t pixels, Range rows, acc_type<operand_t>* out, int64_t out_row) {
  using acc_t = acc_type<operand_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const int64_t rows_of_sum = std::max<int64_t>(1, kLongestSum / 2 / pixels);
  // The lower row of taps sees the inputs one row later.
  for (int64_t row = rows.begin; row < rows.end;) {
    const int64_t end = std::min(row + rows_of_sum, rows.end);
    Vector<acc_t> acc[kRows][kTaps];
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTaps; ++t) acc[r][t] = Vector<acc_t>{};
    }
    for (; row < end; ++row) {
      for (int64_t i = 0; i < pixels; ++i) {
        const unit_type<operand_t>* in = x + row * x_row + offsets[i];
        keep_in_register(in);
        UnitVector<operand_t> d[kRows];
        for (int r = 0; r < kRows; ++r) d[r] = load(dz + (row - r) * dz_row + i * lanes);
        for (int t = 0; t < kTaps; ++t) {
          UnitVector<operand_t> pixel = load(in + t * lanes);
          if constexpr (kRows > 1) keep_in_register(pixel);
          for (int r = 0; r < kRows; ++r) acc[r][t] = multiply_add<operand_t>(acc[r][t], d[r], pixel);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTaps; ++t) {
        acc_t* const to = out + r * out_row + t * lanes;
        store(to, load(to) + acc[r][t]);
      }
    }
  }
}

template <typename operand_t, int kRows, int... kIndex>
auto correlate_block_of(int64_t taps, std::integer_sequence<int, kIndex...>) {
  using Block = decltype(&correlate_block<operand_t, kRows, 1>);
  static constexpr Block kAll[] = {&correlate_block<operand_t, kRows, kIndex + 1>...};
  return kAll[taps - 1];
}

// What a tile adds to the gradients of its channels: to dweight, (KH, KW, lanes) for each block of them, and to dbias,
// (lanes).
template <typename scalar_t, typename operand_t>
class LaneCorrelation {
 public:
  using acc_t = acc_type<scalar_t>;
  static constexpr int64_t lanes = kLanes<acc_t>;

  LaneCorrelation(const Correlation<scalar_t>& c, const Map<const scalar_t>& dz)
      : c_(c),
        dz_map_(dz),
        pixels_(units<operand_t>(c.tile.w)),
        dz_row_(pixels_ * lanes),
        dz_size_((c.tile.h + 2) * dz_row_),
        x_(c, c.tile, c.dilation.w, c.stride.w,
           {0, (kBlockPixels - 1) * c.dilation.w + (kUnitDepth<operand_t> - 1) * c.stride.w}),
        dz_(blocks_of_task(c) * dz_size_),
        natural_(kUnitDepth<operand_t> * dz_row_) {
    for (int64_t i = 0; i < pixels_; ++i) offsets_.push_back(x_[0].offset(i * kUnitDepth<operand_t> * c.stride.w));
  }

  void add(const TileOfMap& tile, acc_t* dweight, double* dbias) {
    x_.fill(tile, 0, x_.rows_under(tile.rows));
    for (int64_t row = -1; row <= tile.rows; ++row) {
      for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
        auto* const to = dz_.get() + block * dz_size_ + (row + 1) * dz_row_;
        if (row < 0 || row == tile.rows) {
          std::fill_n(to, dz_row_, unit_type<operand_t>(0));
        } else {
          fill_dz(part, row, to, dbias + block * lanes);
        }
      });
    }
    for_channel_blocks<scalar_t>(tile, [&](int64_t block, const TileOfMap& part) {
      correlate(block, part, dweight + block * c_.kernel.h * c_.kernel.w * lanes);
    });
  }

 private:
  void fill_dz(const TileOfMap& tile, int64_t row, unit_type<operand_t>* to, double* dbias) {
    acc_t* const natural = natural_.get();
    load_pixels(dz_map_, dz_map_.pixel(tile.image, tile.channel, tile.row + row, tile.column), tile.channels,
                tile.columns, natural);
    std::fill(natural + tile.columns * lanes, natural + kUnitDepth<operand_t> * dz_row_, acc_t(0));
    add_pixels<acc_t>(tile.columns, [&](int64_t i) { return load(natural + i * lanes); }, dbias);
    for (int64_t i = 0; i < pixels_; ++i, to += lanes) {
      if constexpr (kUnitDepth<operand_t> == 2) {
        store(to, round_to_units<operand_t>(load(natural + 2 * i * lanes), load(natural + (2 * i + 1) * lanes)));
      } else {
        store(to, load(natural + i * lanes));
      }
    }
  }

  void correlate(int64_t block, const TileOfMap& tile, acc_t* dweight) const {
    const PaddedTile<scalar_t, operand_t>& inputs = x_[block];
    const auto* const dz = dz_.get() + block * dz_size_ + dz_row_;
    const bool two = c_.stride.h == 1 && c_.dilation.h == 1;
    for (int64_t kh = 0; kh < c_.kernel.h;) {
      const int64_t rows = two && kh + 1 < c_.kernel.h ? 2 : 1;
      const Range below = inside(kh, kh, c_.dilation.h, c_.stride.h, c_.offset.h - tile.row * c_.stride.h, c_.plane().h,
                                 tile.rows + rows - 1);
      for_blocks(c_.kernel.w, [&](int64_t kw, int64_t taps) {
        const Range beside = inside(kw, kw + taps - 1, c_.dilation.w, c_.stride.w,
                                    c_.offset.w - tile.column * c_.stride.w, c_.plane().w, tile.columns);
        if (beside.begin == beside.end) return;
        const int64_t first = beside.begin / kUnitDepth<operand_t>;
        const auto correlate = rows == 2 ? correlate_block_of<operand_t, 2>(taps, kAllBlocks)
                                         : correlate_block_of<operand_t, 1>(taps, kAllBlocks);
        correlate(inputs.row(kh * c_.dilation.h) + kw * lanes, c_.stride.h * inputs.row_step(), dz + first * lanes,
                  dz_row_, offsets_.data() + first, units<operand_t>(beside.end) - first, below,
                  dweight + (kh * c_.kernel.w + kw) * lanes, c_.kernel.w * lanes);
      });
      kh += rows;
    }
  }

  // Of `outputs` rows or columns those that find more than padding under one of taps [first, last]; offset: of the
  // first output, to the padding's end.
  static Range inside(int64_t first, int64_t last, int64_t dilation, int64_t stride, int64_t offset, int64_t inputs,
                      int64_t outputs) {
    const int64_t begin = std::min(steps_to(offset - last * dilation, stride), outputs);
    return {begin, std::clamp(steps_to(offset - first * dilation + inputs, stride), begin, outputs)};
  }

  const Correlation<scalar_t>& c_;
  const Map<const scalar_t>& dz_map_;
  int64_t pixels_, dz_row_, dz_size_;
  TileGroup<scalar_t, operand_t> x_;
  Scratch<unit_type<operand_t>> dz_;
  Scratch<acc_t> natural_;
  std::vector<int64_t> offsets_;
};

template <typename scalar_t, typename operand_t>
void correlate_lanes(const Correlation<scalar_t>& c, const Map<const scalar_t>& dz, scalar_t* dweight,
                     scalar_t* dbias) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  const TileGrid grid = lane_grid(c);
  const int64_t taps = c.kernel.h * c.kernel.w, tasks = grid.tasks_of_block();
  const int64_t size = grid.block() * taps;
  const int64_t parts = std::clamp<int64_t>(2 * at::get_num_threads() / grid.blocks(), 1, tasks);
  const Scratch<acc_t> sums(grid.blocks() * parts * size);
  const Scratch<double> bias_sums(grid.blocks() * parts * grid.block());
  std::fill_n(bias_sums.get(), grid.blocks() * parts * grid.block(), 0.0);
  at::parallel_for(0, grid.blocks() * parts, 1, [&](int64_t begin, int64_t end) {
    LaneCorrelation<scalar_t, operand_t> correlation(c, dz);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t block = index / parts, part = index % parts;
      std::fill_n(sums.get() + index * size, size, acc_t(0));
      for (int64_t task = part * tasks / parts; task < (part + 1) * tasks / parts; ++task) {
        correlation.add(grid[block * tasks + task], sums.get() + index * size, bias_sums.get() + index * grid.block());
      }
    }
  });
  at::parallel_for(0, c.channels, rows_per_task(taps * parts), [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      const int64_t of_task = channel % grid.block(), lane = channel % lanes;
      const int64_t first = channel / grid.block() * parts, last = first + parts;
      for (int64_t tap = 0; tap < taps; ++tap) {
        acc_t total = 0;
        for (int64_t part = first; part < last; ++part) {
          total += sums.get()[part * size + (of_task / lanes * taps + tap) * lanes + lane];
        }
        dweight[channel * taps + tap] = static_cast<scalar_t>(total);
      }
      double total = 0;
      for (int64_t part = first; part < last; ++part) total += bias_sums.get()[part * grid.block() + of_task];
      dbias[channel] = static_cast<scalar_t>(static_cast<acc_t>(total));
    }
  });
}

// Parallel over groups of channels and, where those are few, over parts of their tiles, which are then added in order.
template <typename scalar_t>
void depthwise_weight_gradient(const Correlation<scalar_t>& c, const Map<const scalar_t>& dz, scalar_t* dweight,
                               scalar_t* dbias) {
  if (c.amx) return correlate_lanes<scalar_t, acc_type<scalar_t>>(c, dz, dweight, dbias);
  correlate_lanes<scalar_t, operand_type<scalar_t>>(c, dz, dweight, dbias);
}
