// Runs the CUDA affine-folded linear over the tokens, forward and backward, under the emulator:
//   affine_token_linear_emulated PROBLEMS INPUT OUTPUT
// Each line of PROBLEMS: element type, whether tf32 may be used, sizes B S C, whether alpha, beta, bias, layer_scale
// exist, whether alpha, beta, layer_scale are float32, how many elements the weight lies off an aligned address,
// strides of x, its offset, strides of dy, its offset, multiprocessors, whether there are warpgroups, seed. INPUT holds
// the elements of x, alpha, beta, weight, bias, layer_scale and dy of all problems in row-major order, OUTPUT those of
// y, dx and the gradients in the order of the parameters.
#include <sstream>
#include <string>

#include "affine_token_linear/affine_token_linear_kernels.cuh"
#include "token_problem.h"

namespace {

using mixer_kernels::AffineTokenLinearArguments;
using token_problem::die;
using token_problem::EmulatorLaunch;
using token_problem::Memory;
using token_problem::run_planned;
using token_problem::Tensor;

void solve(const std::string& problem, std::istream& input, std::ostream& output) {
  std::istringstream words(problem);
  AffineTokenLinearArguments arguments{};
  int type;
  int64_t weight_offset;
  bool has_alpha, has_beta, has_bias, has_layer_scale;
  words >> type >> arguments.allow_tf32 >> arguments.batch >> arguments.tokens >> arguments.channels;
  words >> has_alpha >> has_beta >> has_bias >> has_layer_scale;
  words >> arguments.alpha.is_float >> arguments.beta.is_float >> arguments.layer_scale.is_float >> weight_offset;
  arguments.type = static_cast<mixer_kernels::ElementType>(type);
  const int size = mixer_kernels::element_size(arguments.type);
  const int64_t batch = arguments.batch, tokens = arguments.tokens, channels = arguments.channels;
  Tensor x(batch, tokens, channels, size, words), dy(batch, tokens, channels, size, words);
  EmulatorLaunch launch{};
  words >> arguments.multiprocessors >> arguments.has_warpgroups >> launch.seed;
  if (!words) die("cannot read this problem", problem);

  const auto channel_bytes = [&](bool exists, bool is_float) { return exists * channels * (is_float ? 4 : size); };
  const int64_t alpha_bytes = channel_bytes(has_alpha, arguments.alpha.is_float);
  const int64_t beta_bytes = channel_bytes(has_beta, arguments.beta.is_float);
  const int64_t layer_scale_bytes = channel_bytes(has_layer_scale, arguments.layer_scale.is_float);
  const int64_t weight_bytes = tokens * tokens * size, bias_bytes = has_bias * tokens * size;
  Memory alpha(alpha_bytes), beta(beta_bytes), bias(bias_bytes), layer_scale(layer_scale_bytes);
  Tensor weight(1, tokens, tokens, size, 0, tokens, 1, weight_offset);
  x.read(input);
  alpha.read(input);
  beta.read(input);
  weight.read(input);
  bias.read(input);
  layer_scale.read(input);
  dy.read(input);
  if (!input) die("the input is too short", problem);
  arguments.x = x.view();
  arguments.alpha.data = alpha.data_or_null();
  arguments.beta.data = beta.data_or_null();
  arguments.weight = weight.view().data;
  arguments.bias = bias.data_or_null();
  arguments.layer_scale.data = layer_scale.data_or_null();

  const auto with_call = [&](void* workspace, auto&& f) {
    mixer_kernels::with_affine_token_linear(arguments, workspace, launch, f);
  };
  Memory y(batch * tokens * channels * size), dx(batch * tokens * channels * size);
  run_planned(
      with_call, [](auto& linear) { linear.plan_forward(); }, [&](auto& linear) { linear.run_forward(y.data()); });

  Memory dalpha(alpha_bytes), dbeta(beta_bytes), dweight(weight_bytes), dbias(bias_bytes);
  Memory dlayer_scale(layer_scale_bytes);
  run_planned(
      with_call, [&](auto& linear) { linear.plan_backward(dy.view()); },
      [&](auto& linear) {
        linear.run_backward({dx.data(), dalpha.data_or_null(), dbeta.data_or_null(), dweight.data(),
                             dbias.data_or_null(), dlayer_scale.data_or_null()});
      });
  for (const Memory* memory : {&y, &dx, &dalpha, &dbeta, &dweight, &dbias, &dlayer_scale}) memory->write(output);
}

}  // namespace

int main(int argc, char** argv) { token_problem::solve_all(argc, argv, solve); }
