// Runs the CUDA token mixing, forward and backward, under the emulator:
//   token_mixing_emulated PROBLEMS INPUT OUTPUT
// Each line of PROBLEMS: element type, whether tf32 may be used, activation, sizes B S C D, whether there is a second
// weight, whether norm_weight, norm_bias, bias1, bias2 exist, whether the former two are float32, strides of x, its
// offset, strides of dy, its offset, eps, multiprocessors, whether there are warpgroups, seed. INPUT holds the elements
// of x, norm_weight, norm_bias, weight1, bias1, weight2, bias2 and dy of all problems in row-major order, OUTPUT those
// of y, mean, rstd, dx and the gradients in the order of the parameters.
#include <sstream>
#include <string>

#include "token_mixing/token_mixing_kernels.cuh"
#include "token_problem.h"

namespace {

using mixer_kernels::TokenMixingArguments;
using token_problem::die;
using token_problem::EmulatorLaunch;
using token_problem::Memory;
using token_problem::run_planned;
using token_problem::Tensor;

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
  words >> eps >> arguments.multiprocessors >> arguments.has_warpgroups >> launch.seed;
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

  const auto with_call = [&](void* workspace, auto&& f) {
    mixer_kernels::with_token_mixing(arguments, workspace, launch, f);
  };
  Memory y(batch * rows * channels * size), mean(batch * tokens * 4), rstd(batch * tokens * 4);
  auto* means = reinterpret_cast<float*>(mean.data());
  auto* rstds = reinterpret_cast<float*>(rstd.data());
  run_planned(
      with_call, [](auto& mixing) { mixing.plan_forward(); },
      [&](auto& mixing) { mixing.run_forward(eps, {y.data(), means, rstds}); });

  Memory dx(batch * tokens * channels * size), dnorm_weight(norm_weight_bytes), dnorm_bias(norm_bias_bytes);
  Memory dweight1(weight_bytes), dbias1(bias1_bytes), dweight2(is_mlp * weight_bytes), dbias2(bias2_bytes);
  arguments.mean = means;
  arguments.rstd = rstds;
  run_planned(
      with_call, [&](auto& mixing) { mixing.plan_backward(dy.view()); },
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

int main(int argc, char** argv) { token_problem::solve_all(argc, argv, solve); }
