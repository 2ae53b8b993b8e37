// What the programs of the ops over the tokens share: problems, tensors, launches. For one translation unit, like the
// emulator.
#pragma once

#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>

#include "common/cuda.cuh"
#include "common/token_view.h"

namespace token_problem {

using mixer_kernels::TokenView;

[[noreturn]] inline void die(const std::string& what, const std::string& problem) {
  std::cerr << what << "\nproblem: " << problem << std::endl;
  std::exit(1);
}

// Memory of exactly its size, so that an access beyond its ends is seen; NaN at first.
class Memory {
 public:
  explicit Memory(int64_t bytes) : bytes_(bytes), sparse_(bytes > int64_t{1} << 30) {
    if (sparse_) {
      // Offsets beyond 32 bits: address space without memory behind it.
      void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) die("no address space", "");
      data_ = static_cast<char*>(memory);
    } else {
      data_ = static_cast<char*>(std::malloc(bytes));
      std::memset(data_, 0xff, bytes);
    }
  }
  Memory(const Memory&) = delete;
  ~Memory() {
    if (sparse_) {
      munmap(data_, bytes_);
    } else {
      std::free(data_);
    }
  }

  char* data() { return data_; }
  // For an argument that may be absent.
  char* data_or_null() { return bytes_ == 0 ? nullptr : data_; }

  void read(std::istream& from) { from.read(data_, bytes_); }
  void write(std::ostream& to) const { to.write(data_, bytes_); }

 private:
  int64_t bytes_;
  bool sparse_;
  char* data_;
};

// A (B, rows, C) tensor with any strides.
class Tensor {
 public:
  // With strides and offset as the next words of a problem.
  Tensor(int64_t batch, int64_t rows, int64_t channels, int size, std::istream& words)
      : batch_(batch), rows_(rows), channels_(channels), size_(size) {
    words >> view_.batch_stride >> view_.row_stride >> view_.channel_stride >> offset_;
    allocate();
  }
  Tensor(int64_t batch, int64_t rows, int64_t channels, int size, int64_t batch_stride, int64_t row_stride,
         int64_t channel_stride, int64_t offset)
      : batch_(batch),
        rows_(rows),
        channels_(channels),
        offset_(offset),
        size_(size),
        view_{nullptr, batch_stride, row_stride, channel_stride} {
    allocate();
  }

  const TokenView& view() const { return view_; }

  void read(std::istream& from) {
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t r = 0; r < rows_; ++r)
        for (int64_t c = 0; c < channels_; ++c) {
          const int64_t at = offset_ + b * view_.batch_stride + r * view_.row_stride + c * view_.channel_stride;
          from.read(memory_->data() + at * size_, size_);
        }
  }

 private:
  void allocate() {
    const int64_t last = offset_ + (batch_ - 1) * view_.batch_stride + (rows_ - 1) * view_.row_stride +
                         (channels_ - 1) * view_.channel_stride;
    memory_ = std::make_unique<Memory>(size_ * (last + 1));
    view_.data = memory_->data() + offset_ * size_;
  }

  int64_t batch_, rows_, channels_, offset_ = 0;
  int size_;
  TokenView view_{};
  std::unique_ptr<Memory> memory_;
};

// Launches under the emulator.
struct EmulatorLaunch {
  uint64_t seed;

  template <typename Kernel, typename... Arguments>
  void operator()(Kernel* kernel, int64_t blocks, int threads, size_t shared_bytes,
                  const Arguments&... arguments) const {
    emulator::emulate(seed, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), shared_bytes,
                      kernel, arguments...);
  }
};

// Runs one direction of an op in a workspace of the size that it asks for; with_call(workspace, f) calls f with the
// call.
template <typename WithCall, typename Plan, typename Run>
void run_planned(WithCall&& with_call, Plan&& plan, Run&& run) {
  int64_t bytes = 0;
  with_call(nullptr, [&](auto call) {
    plan(call);
    bytes = call.workspace_bytes();
  });
  Memory workspace(bytes);
  with_call(workspace.data(), [&](auto call) {
    plan(call);
    run(call);
  });
}

// Solves each line of PROBLEMS with the elements of INPUT, and writes OUTPUT: solve(problem, input, output).
template <typename Solve>
void solve_all(int argc, char** argv, Solve&& solve) {
  if (argc != 4) die("usage: PROGRAM PROBLEMS INPUT OUTPUT", "");
  std::ifstream problems(argv[1]), input(argv[2], std::ios::binary);
  std::ofstream output(argv[3], std::ios::binary);
  for (std::string problem; std::getline(problems, problem);) solve(problem, input, output);
}

}  // namespace token_problem
