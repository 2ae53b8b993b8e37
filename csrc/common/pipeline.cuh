// Brings the operands of a tiled product into shared memory ahead of their use.
#pragma once

#include <cstdint>

#include "common/mma.cuh"

namespace mixer_kernels {

constexpr int kProductThreads = 128;

// Matrices whose rows are made of whole, aligned 16-byte pieces. Strides in elements.
template <typename scalar_t>
struct Operand {
  const scalar_t* data;
  int64_t batch_stride, row_stride;
  int batch, rows, columns;
};

// A thread's share in copying kRows x kColumns elements of an operand into rows of kPitch, again and again further on;
// zeros beyond the operand. It keeps no more than it must, for registers are short next to the accumulators.
template <typename scalar_t, int kRows, int kColumns, int kPitch>
class TileCopy {
 public:
  __device__ __forceinline__ void start(const Operand<scalar_t>& operand, int image, int row, int column) {
    source_ = operand.data + image * operand.batch_stride + (row + first_row()) * operand.row_stride + column +
              first_column();
    rows_ = image < operand.batch ? operand.rows - row - first_row() : 0;
    columns_ = operand.columns - column - first_column();
  }

  __device__ __forceinline__ void copy(const Operand<scalar_t>& operand, scalar_t* shared) const {
    const scalar_t* source = source_;
    scalar_t* target = shared + first_row() * kPitch + first_column();
#pragma unroll
    for (int r = 0; r < kRows; r += kRowsAtOnce) {
      if (kRows % kRowsAtOnce == 0 || first_row() + r < kRows) {
        cp_async(target + r * kPitch, source, r < rows_ && columns_ > 0);
      }
      source += kRowsAtOnce * operand.row_stride;
    }
  }

  __device__ __forceinline__ void advance_rows(const Operand<scalar_t>& operand, int count) {
    source_ += count * operand.row_stride;
    rows_ -= count;
  }
  __device__ __forceinline__ void advance_columns(int count) {
    source_ += count;
    columns_ -= count;
  }

 private:
  static constexpr int kVec = 16 / sizeof(scalar_t);
  static constexpr int kPieces = kColumns / kVec;  // of a row
  static constexpr int kRowsAtOnce = kProductThreads / kPieces;
  static_assert(kColumns % kVec == 0 && kProductThreads % kPieces == 0 && kPitch % kVec == 0);

  static __device__ __forceinline__ int first_row() { return static_cast<int>(threadIdx.x) / kPieces; }
  static __device__ __forceinline__ int first_column() { return static_cast<int>(threadIdx.x) % kPieces * kVec; }

  const scalar_t* source_;
  int rows_, columns_;  // that exist from the source on
};

// Walks the tiles blockIdx.x, blockIdx.x + gridDim.x, ... and, within each, the chunks of its depth. Copies run
// kStages - 1 chunks ahead, also from the end of one tile into the next, so that short products do not wait for memory.
//
// A Product names its scalar_t and has kStages, kStageElements, tiles() and chunks() (at least one), and
// load(cursor, tile, chunk, stage), which starts the copies of one chunk; it is called for the chunks in their order,
// and its Cursor keeps what it likes from one to the next.
template <class Product>
class Pipeline {
 public:
  using scalar_t = typename Product::scalar_t;

  __device__ __forceinline__ Pipeline(const Product& product, scalar_t* shared)
      : product_(product), shared_(shared), tile_(static_cast<int>(blockIdx.x)) {
#pragma unroll 1
    for (int stage = 0; stage < Product::kStages - 1; ++stage) start_next(stage);
  }

  // The next chunk, in shared memory until the next call.
  __device__ __forceinline__ const scalar_t* next() {
    cp_async_wait<Product::kStages - 2>();
    // Everybody's copies have arrived, and everybody has left the chunk before this one, whose stage is filled next.
    __syncthreads();
    start_next(stage_ == 0 ? Product::kStages - 1 : stage_ - 1);
    const scalar_t* chunk = shared_ + stage_ * Product::kStageElements;
    stage_ = stage_ + 1 == Product::kStages ? 0 : stage_ + 1;
    return chunk;
  }

 private:
  __device__ __forceinline__ void start_next(int stage) {
    if (tile_ < product_.tiles()) {
      product_.load(cursor_, tile_, chunk_, shared_ + stage * Product::kStageElements);
      if (++chunk_ == product_.chunks()) {
        chunk_ = 0;
        tile_ += static_cast<int>(gridDim.x);
      }
    }
    // An empty group too: the wait counts groups.
    cp_async_commit();
  }

  const Product& product_;
  scalar_t* shared_;
  int tile_;
  int chunk_ = 0;
  int stage_ = 0;
  typename Product::Cursor cursor_;
};

}  // namespace mixer_kernels
