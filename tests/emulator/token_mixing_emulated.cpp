// Runs the CUDA token mixing, forward and backward, under the emulator:
//   token_mixing_emulated PROBLEMS INPUT OUTPUT
// Each line of PROBLEMS: element type, whether tf32 may be used, activation, sizes B S C D, whether there is a second
// weight, whether norm_weight, norm_bias, bias1, bias2 exist, whether the former two are float32, strides of x, its
// offset, strides of dy, its offset, eps, multiprocessors, seed. INPUT holds the elements of x, norm_weight, norm_bias,
// weight1, bias1, weight2, bias2 and dy of all problems in row-major order, OUTPUT those of y, mean, rstd, dx and the
// gradients in the order of the parameters.
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "token_mixing/token_mixing_kernels.cuh"

namespace {

using mixer_kernels::TokenMixingArguments;
using mixer_kernels::TokenView;

[[noreturn]] void die(const std::string& what, const std::string& problem) {
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
  Tensor(int64_t batch, int64_t rows, int64_t channels, int size, std::istream& words)
      : batch_(batch), rows_(rows), channels_(channels), size_(size) {
    words >> view_.batch_stride >> view_.row_stride >> view_.channel_stride >> offset_;
    memory_ = std::make_unique<Memory>(size * (offset_ + 1 + (batch - 1) * view_.batch_stride +
                                               (rows - 1) * view_.row_stride + (channels - 1) * view_.channel_stride));
    view_.data = memory_->data() + offset_ * size;
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
  int64_t batch_, rows_, channels_, offset_ = 0;
  int size_;
  TokenView view_{};
  std::unique_ptr<Memory> memory_;
};

struct EmulatorLaunch {
  uint64_t seed;

  template <typename Kernel, typename... Arguments>
  void operator()(Kernel* kernel, int64_t blocks, int threads, size_t shared_bytes,
                  const Arguments&... arguments) const {
    emulator::emulate(seed, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), shared_bytes,
                      kernel, arguments...);
  }
};

// Runs one direction in a workspace of the size that it asks for.
template <typename Plan, typename Run>
void run_planned(const TokenMixingArguments& arguments, const EmulatorLaunch& launch, Plan&& plan, Run&& run) {
  int64_t bytes = 0;
  mixer_kernels::with_token_mixing(arguments, nullptr, launch, [&](auto mixing) {
    plan(mixing);
    bytes = mixing.workspace_bytes();
  });
  Memory workspace(bytes);
  mixer_kernels::with_token_mixing(arguments, workspace.data(), launch, [&](auto mixing) {
    plan(mixing);
    run(mixing);
  });
}

void solve(const std::string& problem, std::istream& input, std::ostream& output) {
  std::istringstream words(problem);
  TokenMixingArguments arguments{};
  int type, activation;
  bool is_mlp, has_norm_weight, has_norm_bias, has_bias1, has_bias2;
  words >> type >> arguments.allow_tf32 >> activation;
  words >> arguments.batch >> arguments.tokens >> arguments.channels >> arguments.hidden;
  words >> is_mlp >> has_norm_weight >> has_norm_bias >> has_bias1 >> has_bias2 >> arguments.norm_is_float;
  arguments.type = static_cast<mixer_kernels::ElementType>(type);
  arguments.activation = static_cast<mixer_kernels::Activation>(activation);
  const int size = mixer_kernels::element_size(arguments.type);
  const int norm_size = arguments.norm_is_float ? 4 : size;
  const int64_t batch = arguments.batch, tokens = arguments.tokens, channels = arguments.channels;
  const int64_t hidden = arguments.hidden, rows = is_mlp ? tokens : hidden;
  Tensor x(batch, tokens, channels, size, words), dy(batch, rows, channels, size, words);
  float eps;
  EmulatorLaunch launch{};
  words >> eps >> arguments.multiprocessors >> launch.seed;
  if (!words) die("cannot read this problem", problem);

  const int64_t norm_weight_bytes = has_norm_weight * channels * norm_size;
  const int64_t norm_bias_bytes = has_norm_bias * channels * norm_size;
  const int64_t weight_bytes = hidden * tokens * size;
  const int64_t bias1_bytes = has_bias1 * hidden * size, bias2_bytes = has_bias2 * tokens * size;
  Memory norm_weight(norm_weight_bytes), norm_bias(norm_bias_bytes), weight1(weight_bytes), bias1(bias1_bytes);
  Memory weight2(is_mlp * weight_bytes), bias2(bias2_bytes);
  x.read(input);
  for (Memory* memory : {&norm_weight, &norm_bias, &weight1, &bias1, &weight2, &bias2}) memory->read(input);
  dy.read(input);
  if (!input) die("the input is too short", problem);
  arguments.x = x.view();
  arguments.norm_weight = norm_weight.data_or_null();
  arguments.norm_bias = norm_bias.data_or_null();
  arguments.weight1 = weight1.data();
  arguments.bias1 = bias1.data_or_null();
  arguments.weight2 = weight2.data_or_null();
  arguments.bias2 = bias2.data_or_null();

  Memory y(batch * rows * channels * size), mean(batch * tokens * 4), rstd(batch * tokens * 4);
  auto* means = reinterpret_cast<float*>(mean.data());
  auto* rstds = reinterpret_cast<float*>(rstd.data());
  run_planned(
      arguments, launch, [](auto& mixing) { mixing.plan_forward(); },
      [&](auto& mixing) { mixing.run_forward(eps, {y.data(), means, rstds}); });

  Memory dx(batch * tokens * channels * size), dnorm_weight(norm_weight_bytes), dnorm_bias(norm_bias_bytes);
  Memory dweight1(weight_bytes), dbias1(bias1_bytes), dweight2(is_mlp * weight_bytes), dbias2(bias2_bytes);
  arguments.mean = means;
  arguments.rstd = rstds;
  run_planned(
      arguments, launch, [&](auto& mixing) { mixing.plan_backward(dy.view()); },
      [&](auto& mixing) {
        mixing.run_backward({dx.data(), dnorm_weight.data_or_null(), dnorm_bias.data_or_null(), dweight1.data(),
                             dbias1.data_or_null(), dweight2.data_or_null(), dbias2.data_or_null()});
      });
  for (const Memory* memory :
       {&y, &mean, &rstd, &dx, &dnorm_weight, &dnorm_bias, &dweight1, &dbias1, &dweight2, &dbias2}) {
    memory->write(output);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) die("usage: token_mixing_emulated PROBLEMS INPUT OUTPUT", "");
  std::ifstream problems(argv[1]), input(argv[2], std::ios::binary);
  std::ofstream output(argv[3], std::ios::binary);
  for (std::string problem; std::getline(problems, problem);) solve(problem, input, output);
}
