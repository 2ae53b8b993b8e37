// Runs the CUDA spatial shift under the emulator:
//   spatial_shift_emulated PROBLEMS INPUT OUTPUT
// Each line of PROBLEMS: element type, sizes of B H W C, strides of the input, its offset, strides of the output, its
// offset, in place, adjoint, seed, number of directions, their codes. INPUT and OUTPUT hold the elements of all
// problems in row-major order.
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "spatial_shift/spatial_shift_kernels.cuh"

namespace {

using mixer_kernels::ShiftShape;
using mixer_kernels::ShiftStrides;

[[noreturn]] void die(const std::string& what, const std::string& problem) {
  std::cerr << what << "\nproblem: " << problem << std::endl;
  std::exit(1);
}

// A tensor in memory of exactly its own size, so that an access beyond its ends is seen; NaN where it has no elements.
class Tensor {
 public:
  Tensor(const ShiftShape& shape, const ShiftStrides& strides, int64_t offset, int size)
      : shape_(shape), strides_(strides), offset_(offset), size_(size) {
    const bool empty = shape.batch * shape.height * shape.width * shape.channels == 0;
    bytes_ = empty ? 0
                   : size * (offset + 1 + (shape.batch - 1) * strides.b + (shape.height - 1) * strides.h +
                             (shape.width - 1) * strides.w + (shape.channels - 1) * strides.c);
    // Offsets beyond 32 bits: address space without memory behind it.
    sparse_ = bytes_ > int64_t{1} << 30;
    if (sparse_) {
      void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) die("no address space", "");
      storage_ = static_cast<char*>(memory);
    } else {
      storage_ = static_cast<char*>(std::malloc(bytes_));
      std::memset(storage_, 0xff, bytes_);
    }
  }
  Tensor(const Tensor&) = delete;
  ~Tensor() {
    if (sparse_) {
      munmap(storage_, bytes_);
    } else {
      std::free(storage_);
    }
  }

  char* data() { return storage_ + offset_ * size_; }

  template <typename Visit>
  void for_each(Visit&& visit) {
    for (int64_t b = 0; b < shape_.batch; ++b)
      for (int64_t h = 0; h < shape_.height; ++h)
        for (int64_t w = 0; w < shape_.width; ++w)
          for (int64_t c = 0; c < shape_.channels; ++c)
            visit(data() + (b * strides_.b + h * strides_.h + w * strides_.w + c * strides_.c) * size_);
  }

  std::string elements() {
    std::string result;
    for_each([&](const char* element) { result.append(element, size_); });
    return result;
  }

  void set_elements(const std::string& values) {
    size_t at = 0;
    for_each([&](char* element) {
      std::memcpy(element, values.data() + at, size_);
      at += size_;
    });
  }

  // Whether nothing was written between the elements; overwrites them.
  bool gaps_untouched() {
    for_each([&](char* element) { std::memset(element, 0xff, size_); });
    return sparse_ || std::all_of(storage_, storage_ + bytes_, [](char byte) { return byte == '\xff'; });
  }

 private:
  ShiftShape shape_;
  ShiftStrides strides_;
  int64_t offset_;
  int size_;
  int64_t bytes_;
  bool sparse_;
  char* storage_;
};

void solve(const std::string& problem, std::istream& input, std::ostream& output) {
  std::istringstream words(problem);
  int type, in_place, adjoint;
  ShiftShape shape;
  ShiftStrides in_strides, out_strides;
  int64_t in_offset, out_offset, groups;
  uint64_t seed;
  words >> type >> shape.batch >> shape.height >> shape.width >> shape.channels;
  words >> in_strides.b >> in_strides.h >> in_strides.w >> in_strides.c >> in_offset;
  words >> out_strides.b >> out_strides.h >> out_strides.w >> out_strides.c >> out_offset;
  words >> in_place >> adjoint >> seed >> groups;
  std::vector<mixer_kernels::Direction> directions(groups);
  for (auto& direction : directions) {
    int code;
    words >> code;
    direction = static_cast<mixer_kernels::Direction>(code);
  }
  if (!words) die("cannot read this problem", problem);

  const auto element_type = static_cast<mixer_kernels::ElementType>(type);
  const int size = mixer_kernels::element_size(element_type);
  std::string values(shape.batch * shape.height * shape.width * shape.channels * size, '\0');
  input.read(values.data(), static_cast<std::streamsize>(values.size()));
  if (!input) die("the input is too short", problem);

  Tensor in(shape, in_strides, in_offset, size);
  in.set_elements(values);
  std::unique_ptr<Tensor> other;
  if (!in_place) other = std::make_unique<Tensor>(shape, out_strides, out_offset, size);
  Tensor& out = in_place ? in : *other;

  mixer_kernels::run_spatial_shift(
      element_type, in.data(), in_strides, out.data(), in_place ? in_strides : out_strides, shape, directions.data(),
      groups, adjoint, [&](auto* kernel, dim3 grid, const auto&... arguments) {
        emulator::emulate(seed, grid, mixer_kernels::kShiftThreads, 0, kernel, arguments...);
      });

  const std::string result = out.elements();
  output.write(result.data(), static_cast<std::streamsize>(result.size()));
  if (!in_place && in.elements() != values) die("the input was changed", problem);
  if (!in.gaps_untouched() || !out.gaps_untouched()) die("written between the elements", problem);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) die("usage: spatial_shift_emulated PROBLEMS INPUT OUTPUT", "");
  std::ifstream problems(argv[1]), input(argv[2], std::ios::binary);
  std::ofstream output(argv[3], std::ios::binary);
  for (std::string problem; std::getline(problems, problem);) solve(problem, input, output);
}
