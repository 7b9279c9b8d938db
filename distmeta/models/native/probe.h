// A small computation with every function that training needs, as one number: two machines whose numbers agree compute the same bits.
#pragma once
#include "convolution.h"
#include "first_block.h"
#include "hidden_block.h"

// Numbers in [-1, 1) from a linear congruence (Knuth's MMIX constants), and the FNV-1a hash of what came out.
class Probe {
 public:
  Buffer<real> numbers(size_t count) {
    Buffer<real> drawn(count);
    for (size_t i = 0; i < count; i++) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      drawn[i] = real((int32_t)(state_ >> 32)) / real(2147483648.0);
    }
    return drawn;
  }

  void take(const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash_ = (hash_ ^ ((const uint8_t*)data)[i]) * 1099511628211u;
  }

  uint64_t digest() const { return hash_; }

 private:
  uint64_t state_ = 1, hash_ = 14695981039346656037u;
};

// What a block's forward pass leaves.
struct Outputs {
  Buffer<real> output, y_max, mean, r;
  Buffer<uint8_t> where;
  Outputs(size_t values, int channels) : output(values), y_max(values), mean(channels), r(channels), where(values) {}
  Pooled pooled() { return {output, y_max, where}; }
  ConstPooled read() { return {output, y_max, where}; }
};

static void probe_hidden(Probe& probe, Sizes s) {
  const size_t inputs = s.N * s.pixels() * s.in, full = s.N * s.pixels() * s.out, small = s.N * s.pooled() * s.out, weights = (size_t)9 * s.in * s.out;
  Buffer<real> x = probe.numbers(inputs), w = probe.numbers(weights), gamma = probe.numbers(s.out), beta = probe.numbers(s.out);
  Buffer<real> gradient = probe.numbers(small), hx = probe.numbers(inputs), hw = probe.numbers(weights), u = probe.numbers(s.out), v = probe.numbers(s.out);
  Outputs to(small, s.out);
  Buffer<real> y(full), grad_y(full), grad_x(inputs), grad_w(weights), grad_gamma(s.out), grad_beta(s.out);
  hidden_forward(s, x, w, gamma, beta, 1e-5, y, to.pooled(), to.mean, to.r);
  hidden_backward(s, gradient, nullptr, x, w, gamma, y, to.read(), to.mean, to.r, grad_y, grad_x, grad_w, grad_gamma, grad_beta);
  probe.take(to.output, small * sizeof(real));
  probe.take(grad_x, inputs * sizeof(real));
  probe.take(grad_w, weights * sizeof(real));
  Buffer<real> by_gradient(small), by_y(full), by_x(inputs), by_w(weights), by_gamma(s.out);
  hidden_second(s, hx, hw, u, v, gradient, x, w, gamma, y, grad_y, to.read(), to.mean, to.r, grad_gamma, grad_beta, by_gradient, by_y, by_x, by_w, by_gamma);
  probe.take(by_gradient, small * sizeof(real));
  probe.take(by_y, full * sizeof(real));
  probe.take(by_w, weights * sizeof(real));
}

template <int C> static void probe_first(Probe& probe, Sizes s) {
  const size_t inputs = s.N * s.pixels() * C, small = s.N * s.pooled() * s.out, weights = (size_t)9 * C * s.out;
  Buffer<real> x = probe.numbers(inputs), w = probe.numbers(weights), gamma = probe.numbers(s.out), beta = probe.numbers(s.out);
  Buffer<real> gradient = probe.numbers(small), hw = probe.numbers(weights), u = probe.numbers(s.out), v = probe.numbers(s.out);
  const Images images{x, (int64_t)s.pixels() * C, 1, (int64_t)s.W * C, C};
  Outputs to(small, s.out);
  Buffer<double> gram(Patch<C>::SIZE * Patch<C>::STRIDE), S((size_t)s.out * Patch<C>::SIZE);
  Buffer<real> grad_w(weights), grad_gamma(s.out), grad_beta(s.out), by_gradient(small), by_w(weights), by_gamma(s.out);
  first_forward<C>(s, images, w, gamma, beta, 1e-5, gram, to.pooled(), to.mean, to.r);
  first_backward<C>(s, images, gradient, w, gamma, to.read(), to.mean, to.r, gram, S, grad_w, grad_gamma, grad_beta);
  first_second<C>(s, images, hw, u, v, w, gamma, to.read(), to.mean, to.r, grad_gamma, grad_beta, gram, S, by_gradient, by_w, by_gamma);
  probe.take(to.output, small * sizeof(real));
  probe.take(grad_w, weights * sizeof(real));
  probe.take(by_gradient, small * sizeof(real));
  probe.take(by_w, weights * sizeof(real));
}

static void probe_convolution(Probe& probe, Sizes s) {
  const size_t inputs = s.N * s.pixels() * s.in, outputs = s.N * s.pixels() * s.out, weights = (size_t)9 * s.in * s.out;
  Buffer<real> x = probe.numbers(inputs), w = probe.numbers(weights), g = probe.numbers(outputs), hx = probe.numbers(inputs), hw = probe.numbers(weights);
  Buffer<real> y(outputs), grad_x(inputs), grad_w(weights), by_g(outputs), by_x(inputs), by_w(weights);
  convolution_forward(s, x, w, y);
  convolution_backward(s, g, x, w, grad_x, grad_w);
  convolution_second(s, hx, hw, g, x, w, by_g, by_x, by_w);
  for (real* full : {(real*)y, (real*)by_g}) probe.take(full, outputs * sizeof(real));
  for (real* like_x : {(real*)grad_x, (real*)by_x}) probe.take(like_x, inputs * sizeof(real));
  for (real* like_w : {(real*)grad_w, (real*)by_w}) probe.take(like_w, weights * sizeof(real));
}

static uint64_t probe_digest() {
  Probe probe;
  probe_hidden(probe, {3, 9, 11, 32, 48});
  probe_hidden(probe, {2, 3, 2, 16, 32});
  probe_first<3>(probe, {2, 15, 18, 3, 48});
  probe_first<1>(probe, {2, 5, 6, 1, 16});
  probe_convolution(probe, {2, 7, 8, 16, 32});
  return probe.digest();
}
