// Runs the CUDA kernels of the shifted split attention under the emulator:
//   split_attention_emulated PROBLEMS INPUT OUTPUT
// Each line of PROBLEMS: element type, sizes B H W C, hidden size, strides of images, rows and columns of x and its
// offset, the same of dy, the offset of the rest, seed. INPUT holds the elements of x (B, H, W, 3C), dy, weights (B, 3,
// C) and da (B, C), both in float32, weight1 and weight2 of all problems in row-major order. OUTPUT holds y, dx, and
// the products with dy summed over the pixels; of the gate the sums and the weights; of its gradient, at those sums and
// the given weights, da and, in the features' type, total, hidden, dinner and dlogits.
#include <sstream>
#include <string>

#include "split_attention/split_attention_call.cuh"
#include "token_problem.h"

namespace {

using mixer_kernels::FeatureView;
using mixer_kernels::SplitAttentionShape;
using token_problem::die;
using token_problem::Memory;

// A (B, H, W, channels) map in memory of exactly its size, with strides and offset as the next words of a problem.
class Map {
 public:
  Map(const SplitAttentionShape& shape, int64_t channels, std::istream& words)
      : shape_(shape), channels_(channels), size_(mixer_kernels::element_size(shape.type)), memory_(extent(words)) {
    view_.data = memory_.data() + offset_ * size_;
  }

  const FeatureView& view() const { return view_; }

  void read(std::istream& from) {
    for (int64_t b = 0; b < shape_.batch; ++b)
      for (int64_t h = 0; h < shape_.height; ++h)
        for (int64_t w = 0; w < shape_.width; ++w) {
          const int64_t at = offset_ + b * view_.image_stride + h * view_.row_stride + w * view_.column_stride;
          from.read(memory_.data() + at * size_, channels_ * size_);
        }
  }

 private:
  int64_t extent(std::istream& words) {
    words >> view_.image_stride >> view_.row_stride >> view_.column_stride >> offset_;
    return size_ * (offset_ + (shape_.batch - 1) * view_.image_stride + (shape_.height - 1) * view_.row_stride +
                    (shape_.width - 1) * view_.column_stride + channels_);
  }

  SplitAttentionShape shape_;
  int64_t channels_, offset_ = 0;
  int size_;
  FeatureView view_{};
  Memory memory_;
};

// A contiguous tensor behind `offset` elements.
class Dense {
 public:
  Dense(int64_t elements, int size, int64_t offset)
      : bytes_(elements * size), skipped_(offset * size), memory_(skipped_ + bytes_) {}

  void* data() { return memory_.data() + skipped_; }
  float* floats() { return reinterpret_cast<float*>(data()); }
  void read(std::istream& from) { from.read(static_cast<char*>(data()), bytes_); }
  void write(std::ostream& to) { to.write(static_cast<char*>(data()), bytes_); }

 private:
  int64_t bytes_, skipped_;
  Memory memory_;
};

void solve(const std::string& problem, std::istream& input, std::ostream& output) {
  std::istringstream words(problem);
  int type;
  SplitAttentionShape shape{};
  int64_t hidden_size;
  words >> type >> shape.batch >> shape.height >> shape.width >> shape.channels >> hidden_size;
  shape.type = static_cast<mixer_kernels::ElementType>(type);
  constexpr int kBranches = mixer_kernels::kBranches;
  const int size = mixer_kernels::element_size(shape.type);
  const int64_t columns = shape.batch * shape.channels, elements = columns * shape.height * shape.width;

  Map x(shape, kBranches * shape.channels, words), dy(shape, shape.channels, words);
  int64_t offset;
  token_problem::EmulatorLaunch launch{};
  words >> offset >> launch.seed;
  if (!words) die("cannot read this problem", problem);
  Dense weights(kBranches * columns, sizeof(float), offset), da(columns, sizeof(float), offset);
  x.read(input);
  dy.read(input);
  weights.read(input);
  da.read(input);
  Dense weight1(hidden_size * shape.channels, size, 0);
  Dense weight2(kBranches * shape.channels * hidden_size, size, 0);
  weight1.read(input);
  weight2.read(input);
  if (!input) die("the input is too short", problem);

  Dense y(elements, size, offset), dx(kBranches * elements, size, offset);
  mixer_kernels::run_split_combine(shape, x.view(), weights.floats(), y.data(), launch);
  mixer_kernels::run_split_backward_features(shape, dy.view(), weights.floats(), da.floats(), dx.data(), launch);
  const mixer_kernels::SplitSumsCall<true> products(shape);
  Dense terms(products.terms(), sizeof(float), 0), dweights(kBranches * columns, sizeof(float), 0);
  products.run(dy.view(), x.view(), terms.floats(), launch);
  for (int64_t i = 0; i < kBranches * columns; ++i) {
    double sum = 0.0;
    for (int64_t part = 0; part < products.parts(); ++part) sum += terms.floats()[part * kBranches * columns + i];
    dweights.floats()[i] = static_cast<float>(sum);
  }
  const mixer_kernels::SplitGateCall gate(shape, hidden_size);
  Memory workspace(gate.workspace_bytes());
  Dense total(columns, sizeof(float), 0), gates(kBranches * columns, sizeof(float), offset);
  gate.run(x.view(), weight1.data(), weight2.data(), total.floats(), gates.floats(), workspace.data(), launch);
  const mixer_kernels::SplitGateBackwardCall backward_gate(shape, hidden_size);
  Memory backward_workspace(backward_gate.workspace_bytes());
  Dense from_gate(columns, sizeof(float), offset), own_total(columns, size, offset);
  Dense hidden(shape.batch * hidden_size, size, offset), dinner(shape.batch * hidden_size, size, offset);
  Dense dlogits(kBranches * columns, size, offset);
  backward_gate.run(dy.view(), x.view(), {total.floats(), weights.floats(), weight1.data(), weight2.data()},
                    from_gate.floats(), {own_total.data(), hidden.data(), dinner.data(), dlogits.data()},
                    backward_workspace.data(), launch);
  y.write(output);
  dx.write(output);
  dweights.write(output);
  total.write(output);
  gates.write(output);
  from_gate.write(output);
  for (Dense* factor : {&own_total, &hidden, &dinner, &dlogits}) factor->write(output);
}

}  // namespace

int main(int argc, char** argv) { token_problem::solve_all(argc, argv, solve); }
