// What Python calls (library.py): the two blocks' four functions each, a convolution's three, and a probe. No function keeps state, so any thread
// may call it. Each returns 0, or 1 if memory ran out. hidden_block.h, first_block.h and convolution.h say what the arrays hold.
#include "convolution.h"
#include "first_block.h"
#include "hidden_block.h"
#include "probe.h"

namespace {

template <class Body> int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Calls body with the number of colours as a constant: grey or colour images.
template <class Body> int with_colours(int colours, Body body) {
  return guarded([&] { colours == 1 ? body(std::integral_constant<int, 1>()) : body(std::integral_constant<int, 3>()); });
}

}  // namespace

#define SIZES int N, int H, int W, int in, int out
#define IMAGES const real *x, int64_t next_image, int64_t next_colour, int64_t next_row, int64_t next_pixel
#define POOLED const real *output, const real *y_max, const uint8_t *where

extern "C" {

int block_forward(SIZES, const real* x, const real* w, const real* gamma, const real* beta, double eps, real* y, real* output, real* y_max,
                  uint8_t* where, real* mean, real* r) {
  return guarded([&] { hidden_forward({N, H, W, in, out}, x, w, gamma, beta, eps, y, {output, y_max, where}, mean, r); });
}

int block_evaluate(SIZES, const real* x, const real* w, const real* gamma, const real* beta, const real* mean, const real* variance, double eps,
                   real* output) {
  return guarded([&] { hidden_evaluate({N, H, W, in, out}, x, w, Norm(gamma, beta, mean, variance, eps, out), output); });
}

int block_backward(SIZES, const real* grad_output, const real* grad_of_y, const real* x, const real* w, const real* gamma, const real* y, POOLED,
                   const real* mean, const real* r, real* grad_y, real* grad_x, real* grad_w, real* grad_gamma, real* grad_beta) {
  return guarded([&] {
    hidden_backward({N, H, W, in, out}, grad_output, grad_of_y, x, w, gamma, y, {output, y_max, where}, mean, r, grad_y, grad_x, grad_w,
                    grad_gamma, grad_beta);
  });
}

int block_second(SIZES, const real* hx, const real* hw, const real* u, const real* v, const real* grad_output, const real* x, const real* w,
                 const real* gamma, const real* y, const real* grad_y, POOLED, const real* mean, const real* r, const real* grad_gamma,
                 const real* grad_beta, real* by_grad_output, real* by_y, real* by_x, real* by_w, real* by_gamma) {
  return guarded([&] {
    hidden_second({N, H, W, in, out}, hx, hw, u, v, grad_output, x, w, gamma, y, grad_y, {output, y_max, where}, mean, r, grad_gamma, grad_beta,
                  by_grad_output, by_y, by_x, by_w, by_gamma);
  });
}

int first_block_forward(SIZES, IMAGES, const real* w, const real* gamma, const real* beta, double eps, double* gram, real* output,
                        real* y_max, uint8_t* where, real* mean, real* r) {
  return with_colours(in, [&](auto C) {
    first_forward<C>({N, H, W, in, out}, {x, next_image, next_colour, next_row, next_pixel}, w, gamma, beta, eps, gram,
                     {output, y_max, where}, mean, r);
  });
}

int first_block_evaluate(SIZES, IMAGES, const real* w, const real* gamma, const real* beta, const real* mean, const real* variance, double eps,
                         real* output) {
  return with_colours(in, [&](auto C) {
    const Norm norm(gamma, beta, mean, variance, eps, out);
    first_evaluate<C>({N, H, W, in, out}, {x, next_image, next_colour, next_row, next_pixel}, w, norm, output);
  });
}

int first_block_backward(SIZES, IMAGES, const real* grad_output, const real* w, const real* gamma, POOLED, const real* mean, const real* r,
                         const double* gram, double* S, real* grad_w, real* grad_gamma, real* grad_beta) {
  return with_colours(in, [&](auto C) {
    first_backward<C>({N, H, W, in, out}, {x, next_image, next_colour, next_row, next_pixel}, grad_output, w, gamma, {output, y_max, where}, mean, r,
                      gram, S, grad_w, grad_gamma, grad_beta);
  });
}

int first_block_second(SIZES, IMAGES, const real* hw, const real* u, const real* v, const real* w, const real* gamma, POOLED, const real* mean,
                       const real* r, const real* grad_gamma, const real* grad_beta, const double* gram, const double* S, real* by_grad_output,
                       real* by_w, real* by_gamma) {
  return with_colours(in, [&](auto C) {
    first_second<C>({N, H, W, in, out}, {x, next_image, next_colour, next_row, next_pixel}, hw, u, v, w, gamma, {output, y_max, where}, mean, r,
                    grad_gamma, grad_beta, gram, S, by_grad_output, by_w, by_gamma);
  });
}

int convolution(SIZES, const real* x, const real* w, real* y) {
  return guarded([&] { convolution_forward({N, H, W, in, out}, x, w, y); });
}

int convolution_gradients(SIZES, const real* g, const real* x, const real* w, real* grad_x, real* grad_w) {
  return guarded([&] { convolution_backward({N, H, W, in, out}, g, x, w, grad_x, grad_w); });
}

int convolution_gradients_twice(SIZES, const real* hx, const real* hw, const real* g, const real* x, const real* w, real* by_g, real* by_x,
                                real* by_w) {
  return guarded([&] { convolution_second({N, H, W, in, out}, hx, hw, g, x, w, by_g, by_x, by_w); });
}

uint64_t probe() { return probe_digest(); }

}  // extern "C"
