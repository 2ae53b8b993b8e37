// How a block of 128 threads multiplies tiles in shared memory: on the tensor cores (float16, bfloat16, and tf32 for
// float) or by float32 multiply-adds.
//
// A tile is kM x kN outputs, and a chunk of it kK deep: 64 bytes. The first operand lies in shared memory as [kM][kK],
// the second as [kK][kN] or [kN][kK]; pitches are padded so that neither ldmatrix nor vector loads meet in a bank.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/mma.cuh"
#include "common/pipeline.cuh"
#include "common/vector.cuh"
#include "common/warp.cuh"

namespace mixer_kernels {

// The order of the second operand in shared memory.
enum class Order { kDepthByColumn, kColumnByDepth };

template <typename scalar_t_, int kM_, Order kOrder_>
struct TileShape {
  using scalar_t = scalar_t_;
  static constexpr Order kOrder = kOrder_;
  static constexpr int kVec = 16 / sizeof(scalar_t);
  static constexpr int kM = kM_, kN = 128, kK = 4 * kVec;
  static constexpr int kWidePitch = kN + 8, kDeepPitch = kK + kVec;
  static constexpr int kFirstPitch = kDeepPitch;
  static constexpr int kSecondPitch = kOrder == Order::kDepthByColumn ? kWidePitch : kDeepPitch;
  static constexpr int kFirstElements = kM * kFirstPitch;
  static constexpr int kStageElements = kFirstElements + (kOrder == Order::kDepthByColumn ? kK : kN) * kSecondPitch;

  // What an epilogue takes besides comes through the same stages, [rows][kN], in parts of so many rows of the tile.
  static constexpr int part_rows() {
    int rows = kM;
    while (rows * kWidePitch > kStageElements) rows /= 2;
    return rows;
  }
  static constexpr int kPartRows = part_rows(), kParts = kM / kPartRows;
  static_assert(kM % kPartRows == 0 && kPartRows % 8 == 0);
  using PartCopy = TileCopy<scalar_t, kPartRows, kN, kWidePitch>;

  // Copies both operands of one chunk after the other.
  class ChunkCopy {
   public:
    __device__ __forceinline__ void start(const Operand<scalar_t>& first, int first_image, int row,
                                          const Operand<scalar_t>& second, int second_image, int column, int depth) {
      first_.start(first, first_image, row, depth);
      if constexpr (kOrder == Order::kDepthByColumn) {
        second_.start(second, second_image, depth, column);
      } else {
        second_.start(second, second_image, column, depth);
      }
    }
    __device__ __forceinline__ void copy_next(const Operand<scalar_t>& first, const Operand<scalar_t>& second,
                                              scalar_t* stage) {
      first_.copy(first, stage);
      first_.advance_columns(kK);
      second_.copy(second, stage + kFirstElements);
      if constexpr (kOrder == Order::kDepthByColumn) {
        second_.advance_rows(second, kK);
      } else {
        second_.advance_columns(kK);
      }
    }

   private:
    TileCopy<scalar_t, kM, kK, kFirstPitch> first_;
    std::conditional_t<kOrder == Order::kDepthByColumn, TileCopy<scalar_t, kK, kN, kSecondPitch>,
                       TileCopy<scalar_t, kN, kK, kSecondPitch>>
        second_;
  };
};

// Part of a result of rows x columns, from one element on: rows and columns say how much of it exists. `whole` says
// that rows are made of aligned 16-byte pieces.
template <typename scalar_t>
struct TileOutput {
  scalar_t* data;
  int64_t row_stride;
  int rows, columns;
  bool whole;

  __device__ __forceinline__ TileOutput from(int row, int column) const {
    return {data + row * row_stride + column, row_stride, rows - row, columns - column, whole};
  }
};

// Stores neighbouring elements that fill `words`.
template <int kWords, typename scalar_t>
__device__ __forceinline__ void store_words(const TileOutput<scalar_t>& out, int row, int column,
                                            const uint32_t (&words)[kWords]) {
  constexpr int kPerWord = sizeof(uint32_t) / sizeof(scalar_t);
  using vector_t = Vector<scalar_t, kWords * kPerWord>;
  if (row >= out.rows) return;
  scalar_t* to = out.data + row * out.row_stride + column;
  if (out.whole && column + kWords * kPerWord <= out.columns) {
    typename vector_t::access_t bits{};
#pragma unroll
    for (int i = 0; i < kWords; ++i) bits |= static_cast<typename vector_t::access_t>(words[i]) << (32 * i);
    vector_t{bits}.store(to);
    return;
  }
#pragma unroll
  for (int i = 0; i < kWords * kPerWord; ++i) {
    if (column + i >= out.columns) return;
    const auto element = static_cast<typename AccessOf<sizeof(scalar_t)>::type>(
        words[i / kPerWord] >> (8 * sizeof(scalar_t) * (i % kPerWord)));
    memcpy(to + i, &element, sizeof(element));
  }
}

// Stores the outputs that a thread holds of one row, run by run.
template <class Tile>
__device__ __forceinline__ void store_row(typename Tile::Accumulator& acc, int row,
                                          const TileOutput<typename Tile::scalar_t>& out) {
  static_assert(sizeof(typename Tile::scalar_t) == sizeof(uint32_t));
  const auto mine = out.from(Tile::warp_row() + Tile::thread_row(), Tile::first_column());
#pragma unroll
  for (int r = 0; r < Tile::kRuns; ++r) {
    uint32_t words[Tile::kRun];
    memcpy(words, Tile::run(acc, row, r), sizeof(words));
    store_words(mine, Tile::row_offset(row), Tile::column_offset(r), words);
  }
}

// Of 16 x 16 outputs, the fragments of two mma side by side, four neighbouring lanes hold two rows in pieces of two
// columns. They trade until each has 8 columns of one row: first rows with the neighbour, then columns with the one
// after it. Odd lanes end up with the second row, upper lanes with the right half.
struct RowGather {
  static __device__ __forceinline__ bool is_odd() { return threadIdx.x % 2 != 0; }
  static __device__ __forceinline__ bool is_upper() { return threadIdx.x % 4 / 2 != 0; }
  // Of what a lane ends up with.
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) % 32 / 4 + (is_odd() ? 8 : 0); }
  static __device__ __forceinline__ int column() { return is_upper() ? 8 : 0; }

  template <typename scalar_t>
  static __device__ __forceinline__ void gather(uint32_t (&words)[4], const float (&left)[4], const float (&right)[4]) {
    uint32_t half_row[2][2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float (&value)[4] = side == 0 ? left : right;
      const uint32_t first_row = pack_pair<scalar_t>(value[0], value[1]);
      const uint32_t second_row = pack_pair<scalar_t>(value[2], value[3]);
      const uint32_t other = __shfl_xor_sync(0xffffffffu, is_odd() ? first_row : second_row, 1);
      half_row[side][0] = is_odd() ? other : first_row;
      half_row[side][1] = is_odd() ? second_row : other;
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint32_t other = __shfl_xor_sync(0xffffffffu, is_upper() ? half_row[0][part] : half_row[1][part], 2);
      words[part] = is_upper() ? other : half_row[0][part];
      words[2 + part] = is_upper() ? half_row[1][part] : other;
    }
  }
};

// What a second operand may go through on its way into a product: b * (scale * factor) + shift * factor, where scale
// and shift belong to a place of the depth. The pointers are those of a chunk, whole to its end and aligned as its
// vectors.
struct DepthAffine {
  const float *scale, *shift;
  float factor;

  template <int kCount>
  __device__ __forceinline__ void load(float (&scales)[kCount], float (&shifts)[kCount], int depth) const {
    load_floats(scales, scale + depth);
    load_floats(shifts, shift + depth);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      scales[i] *= factor;
      shifts[i] *= factor;
    }
  }
};

// What there is to do with a fragment besides.
struct Nothing {
  template <typename... Arguments>
  __device__ __forceinline__ void operator()(Arguments&&...) const {}
};

// The tensor cores' tile: kWarpsM warps share the rows, so that each computes kM / kWarpsM x 128 * kWarpsM / 4 outputs.
// kBlocks blocks should be on a multiprocessor at once.
template <typename scalar_t, int kM, int kWarpsM_, int kBlocks_, Order kOrder>
struct TensorTile : TileShape<scalar_t, kM, kOrder> {
  using Shape = TileShape<scalar_t, kM, kOrder>;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = 4 / kWarpsM;
  static constexpr int kWarpM = kM / kWarpsM;
  static constexpr int kWarpN = Shape::kN / kWarpsN;
  static constexpr int kFragmentsM = kWarpM / 16;
  static constexpr int kFragmentsN = kWarpN / 8;
  static_assert(kM % (16 * kWarpsM) == 0 && kFragmentsN % 2 == 0);
  // A thread's outputs: kRuns runs of kRun neighbouring columns in each of kRows rows, of which groups are stored
  // together.
  static constexpr int kRows = kFragmentsM * 2, kRuns = kFragmentsN, kRun = 2, kGroupRows = 2;

  struct Accumulator {
    float value[kFragmentsM][kFragmentsN][4] = {};
  };
  // Sums of the second operand over its depth, one for each column.
  struct ColumnSums {
    float value[kFragmentsN][4] = {};
  };

  // Adds the product of one chunk, `depth` deep.
  static __device__ __forceinline__ void multiply(Accumulator& acc, const scalar_t* chunk, int depth) {
    multiply(acc, chunk, depth, Nothing{}, Nothing{});
  }

  // The same with the second operand scaled and shifted, by float32 and rounded once.
  static __device__ __forceinline__ void multiply(Accumulator& acc, const DepthAffine& affine, const scalar_t* chunk,
                                                  int depth) {
    constexpr int kPerWord = sizeof(uint32_t) / sizeof(scalar_t);
    const auto adjust = [&](uint32_t (&b)[2], int k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float scale[kPerWord], shift[kPerWord];
        affine.load(scale, shift, k + half * Shape::kVec + lane() % 4 * kPerWord);
        b[half] = scale_and_shift(b[half], scale, shift);
      }
    };
    multiply(acc, chunk, depth, adjust, Nothing{});
  }

  // The same, and if asked adds up the second operand: it is multiplied by ones.
  static __device__ __forceinline__ void multiply(Accumulator& acc, ColumnSums& column_sums, bool wants_sums,
                                                  const scalar_t* chunk, int depth) {
    const float one = 1.0f;
    uint32_t ones_bits;
    if constexpr (sizeof(scalar_t) == 2) {
      ones_bits = pack_pair<scalar_t>(one, one);
    } else {
      memcpy(&ones_bits, &one, sizeof(one));
    }
    const uint32_t ones[4] = {ones_bits, ones_bits, ones_bits, ones_bits};
    multiply(acc, chunk, depth, Nothing{}, [&](const uint32_t (&b)[2], int j) {
      if (wants_sums) mma<scalar_t>(column_sums.value[j], ones, b);
    });
  }

  static __device__ __forceinline__ float* run(Accumulator& acc, int row, int r) {
    return acc.value[row / 2][r] + row % 2 * kRun;
  }
  // The rows are those of warp_row() + thread_row() + row_offset(row), the columns likewise.
  static __device__ __forceinline__ int warp_row() { return warp_m() * kWarpM; }
  static __device__ __forceinline__ int thread_row() { return lane() / 4; }
  static constexpr __device__ int row_offset(int row) { return row / 2 * 16 + row % 2 * 8; }
  static __device__ __forceinline__ int first_column() { return warp_column() + lane() % 4 * kRun; }
  static constexpr __device__ int column_offset(int r) { return r * 8; }

  // Sums over the lanes that hold the same columns, or the same rows; all lanes take part, each gets the sum, and one
  // of them has it to itself. What is left to add up are kWarpsM warps, or kWarpsN.
  static __device__ __forceinline__ float sum_rows(float value) { return sum_lanes<4, 16>(value); }
  static __device__ __forceinline__ float sum_columns(float value) { return sum_lanes<1, 2>(value); }
  static __device__ __forceinline__ bool owns_columns() { return lane() < 4; }
  static __device__ __forceinline__ bool owns_rows() { return lane() % 4 == 0; }
  static __device__ __forceinline__ int warp_m() { return static_cast<int>(threadIdx.x) / 32 / kWarpsN; }
  static __device__ __forceinline__ int warp_n() { return static_cast<int>(threadIdx.x) / 32 % kWarpsN; }

  // Calls f(column, sum) once for each column of the tile.
  template <typename F>
  static __device__ __forceinline__ void for_each_sum(const ColumnSums& sums, F&& f) {
    if (warp_row() > 0 || lane() >= 4) return;
#pragma unroll
    for (int j = 0; j < kFragmentsN; ++j) {
      f(warp_column() + j * 8 + lane() * 2, sums.value[j][0]);
      f(warp_column() + j * 8 + lane() * 2 + 1, sums.value[j][1]);
    }
  }

  static __device__ __forceinline__ void store_group(Accumulator& acc, int group, const TileOutput<scalar_t>& out) {
    if constexpr (sizeof(scalar_t) == 2) {
      const TileOutput<scalar_t> mine = out.from(warp_row() + RowGather::row(), warp_column() + RowGather::column());
#pragma unroll
      for (int j = 0; j < kFragmentsN; j += 2) {
        uint32_t words[4];
        RowGather::gather<scalar_t>(words, acc.value[group][j], acc.value[group][j + 1]);
        store_words(mine, group * 16, j * 8, words);
      }
    } else {
      store_row<TensorTile>(acc, 2 * group, out);
      store_row<TensorTile>(acc, 2 * group + 1, out);
    }
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ __forceinline__ int warp_column() { return warp_n() * kWarpN; }

  template <int kCount>
  static __device__ __forceinline__ void round_to_tf32(uint32_t (&fragment)[kCount]) {
    if constexpr (std::is_same_v<scalar_t, float>) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) fragment[i] = to_tf32(fragment[i]);
    }
  }

  // Of each fragment of the second operand, calls adjust(fragment, k) before it is rounded and sums(fragment, j) after.
  template <typename Adjust, typename Sums>
  static __device__ __forceinline__ void multiply(Accumulator& acc, const scalar_t* chunk, int depth, Adjust&& adjust,
                                                  Sums&& sums) {
    constexpr int kStep = 2 * Shape::kVec;
    const scalar_t* first = chunk + (warp_row() + lane() % 16) * Shape::kFirstPitch + lane() / 16 * Shape::kVec;
    const scalar_t* second = chunk + Shape::kFirstElements;
#pragma unroll
    for (int k = 0; k < Shape::kK; k += kStep) {
      if (k >= depth) break;
      uint32_t a[kFragmentsM][4], b[kFragmentsN][2];
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i) {
        ldmatrix(a[i], first + i * 16 * Shape::kFirstPitch + k);
        round_to_tf32(a[i]);
      }
#pragma unroll
      for (int j = 0; j < kFragmentsN; j += 2) load_columns(b[j], b[j + 1], second, k, j);
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) {
        adjust(b[j], k);
        round_to_tf32(b[j]);
#pragma unroll
        for (int i = 0; i < kFragmentsM; ++i) mma<scalar_t>(acc.value[i][j], a[i], b[j]);
        sums(b[j], j);
      }
    }
  }
  // The second operand's fragments for the columns j * 8 to j * 8 + 15 of this warp.
  static __device__ __forceinline__ void load_columns(uint32_t (&low)[2], uint32_t (&high)[2], const scalar_t* second,
                                                      int k, int j) {
    const int column = warp_column() + j * 8;
    if constexpr (kOrder == Order::kColumnByDepth || sizeof(scalar_t) == 2) {
      uint32_t both[4];
      if constexpr (kOrder == Order::kColumnByDepth) {
        const int row = column + lane() / 16 * 8 + lane() % 8;
        ldmatrix(both, second + row * Shape::kSecondPitch + k + lane() / 8 % 2 * Shape::kVec);
      } else {
        ldmatrix_transposed(both, second + (k + lane() % 16) * Shape::kSecondPitch + column + lane() / 16 * 8);
      }
      low[0] = both[0], low[1] = both[1], high[0] = both[2], high[1] = both[3];
    } else {
      // ldmatrix transposes elements of 16 bits only.
      const scalar_t* at = second + (k + lane() % 4) * Shape::kSecondPitch + column + lane() / 4;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        memcpy(&low[half], at + 4 * half * Shape::kSecondPitch, sizeof(low[half]));
        memcpy(&high[half], at + 4 * half * Shape::kSecondPitch + 8, sizeof(high[half]));
      }
    }
  }

  // The elements of a register that lie one after the other along the depth.
  template <int kPerWord>
  static __device__ __forceinline__ uint32_t scale_and_shift(uint32_t word, const float (&scale)[kPerWord],
                                                             const float (&shift)[kPerWord]) {
    if constexpr (kPerWord == 2) {
      const float low = to_acc(element_of<scalar_t>(word)), high = to_acc(element_of<scalar_t>(word >> 16));
      return pack_pair<scalar_t>(low * scale[0] + shift[0], high * scale[1] + shift[1]);
    } else {
      const float value = element_of<float>(word) * scale[0] + shift[0];
      uint32_t bits;
      memcpy(&bits, &value, sizeof(bits));
      return bits;
    }
  }
};

// float32 multiply-adds: each thread computes kM / 8 rows x 8 columns.
template <int kM, int kBlocks_, Order kOrder>
struct FmaTile : TileShape<float, kM, kOrder> {
  using Shape = TileShape<float, kM, kOrder>;
  static constexpr int kBlocks = kBlocks_;
  // A thread's outputs: kRuns runs of kRun neighbouring columns in each of kRows rows. Columns are dealt out so that
  // the vector loads of the second operand fall into different banks.
  static constexpr int kRows = kM / 8, kRun = kOrder == Order::kDepthByColumn ? 4 : 1, kRuns = 8 / kRun, kGroupRows = 1;

  struct Accumulator {
    float value[kRows][8] = {};
  };
  struct ColumnSums {
    float value[8] = {};
  };

  // Adds the product of one chunk, `depth` deep.
  static __device__ __forceinline__ void multiply(Accumulator& acc, const float* chunk, int depth) {
    multiply(acc, chunk, depth, Nothing{}, Nothing{});
  }

  // The same with the second operand scaled and shifted.
  static __device__ __forceinline__ void multiply(Accumulator& acc, const DepthAffine& affine, const float* chunk,
                                                  int depth) {
    const auto adjust = [&](float (&b)[4][8], int k) {
      float scale[4], shift[4];
      affine.load(scale, shift, k);
#pragma unroll
      for (int d = 0; d < 4; ++d) {
#pragma unroll
        for (int j = 0; j < 8; ++j) b[d][j] = b[d][j] * scale[d] + shift[d];
      }
    };
    multiply(acc, chunk, depth, adjust, Nothing{});
  }

  // The same, and if asked adds up the second operand.
  static __device__ __forceinline__ void multiply(Accumulator& acc, ColumnSums& column_sums, bool wants_sums,
                                                  const float* chunk, int depth) {
    float sums[8] = {};
    multiply(acc, chunk, depth, Nothing{}, [&](const float (&b)[8]) {
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[j] += b[j];
    });
#pragma unroll
    for (int j = 0; j < 8; ++j) column_sums.value[j] += wants_sums ? sums[j] : 0.0f;
  }

  static __device__ __forceinline__ float* run(Accumulator& acc, int row, int r) { return acc.value[row] + r * kRun; }
  // The rows are those of warp_row() + thread_row() + row_offset(row), the columns likewise.
  static constexpr __device__ int warp_row() { return 0; }
  static __device__ __forceinline__ int thread_row() { return static_cast<int>(threadIdx.x) / 16; }
  static constexpr __device__ int row_offset(int row) { return row * 8; }
  static __device__ __forceinline__ int first_column() {
    return static_cast<int>(threadIdx.x) % 16 * (kOrder == Order::kDepthByColumn ? 4 : 1);
  }
  static constexpr __device__ int column_offset(int r) { return offset_of(r * kRun); }

  // As in TensorTile. A warp holds two of every eight rows.
  static constexpr int kWarpsM = 4, kWarpsN = 1;
  static __device__ __forceinline__ float sum_rows(float value) { return sum_lanes<16, 16>(value); }
  static __device__ __forceinline__ float sum_columns(float value) { return sum_lanes<1, 8>(value); }
  static __device__ __forceinline__ bool owns_columns() { return threadIdx.x % 32 < 16; }
  static __device__ __forceinline__ bool owns_rows() { return threadIdx.x % 16 == 0; }
  static __device__ __forceinline__ int warp_m() { return static_cast<int>(threadIdx.x) / 32; }
  static constexpr __device__ int warp_n() { return 0; }

  // Calls f(column, sum) once for each column of the tile.
  template <typename F>
  static __device__ __forceinline__ void for_each_sum(const ColumnSums& sums, F&& f) {
    if (thread_row() > 0) return;
#pragma unroll
    for (int j = 0; j < 8; ++j) f(first_column() + offset_of(j), sums.value[j]);
  }

  static __device__ __forceinline__ void store_group(Accumulator& acc, int group, const TileOutput<float>& out) {
    store_row<FmaTile>(acc, group, out);
  }

 private:
  static constexpr __device__ int offset_of(int j) {
    return kOrder == Order::kDepthByColumn ? j / 4 * 64 + j % 4 : j * 16;
  }

  // Adds up over the chunk, then over the chunks: the longer a plain sum, the larger its error. Calls adjust(4 x 8, k)
  // on what the thread takes of the second operand, and sums(row of 8) on one depth after the other.
  template <typename Adjust, typename Sums>
  static __device__ __forceinline__ void multiply(Accumulator& acc, const float* chunk, int depth, Adjust&& adjust,
                                                  Sums&& sums) {
    const float* first = chunk + thread_row() * Shape::kFirstPitch;
    const float* second = chunk + Shape::kFirstElements;
    float products[kRows][8] = {};
#pragma unroll
    for (int k = 0; k < Shape::kK; k += 4) {
      if (k >= depth) break;
      float a[kRows][4], b[4][8];
#pragma unroll
      for (int i = 0; i < kRows; ++i) load_floats(a[i], first + i * 8 * Shape::kFirstPitch + k);
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        float four[4];
        if constexpr (kOrder == Order::kDepthByColumn) {
          const float* row = second + (k + d) * Shape::kSecondPitch + first_column();
#pragma unroll
          for (int j = 0; j < 8; j += 4) {
            load_floats(four, row + offset_of(j));
#pragma unroll
            for (int i = 0; i < 4; ++i) b[d][j + i] = four[i];
          }
        } else {
#pragma unroll
          for (int j = d; j < 8; j += 4) {
            load_floats(four, second + (first_column() + offset_of(j)) * Shape::kSecondPitch + k);
#pragma unroll
            for (int i = 0; i < 4; ++i) b[i][j] = four[i];
          }
        }
      }
      adjust(b, k);
#pragma unroll
      for (int d = 0; d < 4; ++d) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < 8; ++j) products[i][j] += a[i][d] * b[d][j];
        }
        sums(b[d]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) acc.value[i][j] += products[i][j];
    }
  }
};

}  // namespace mixer_kernels
