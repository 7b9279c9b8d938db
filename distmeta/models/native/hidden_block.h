// A block in the network's depth: y = convolution of x by w, batch norm over all images, 2×2 max-pool, ReLU. All arrays have channels last:
// x (N, H, W, in), w (out, 3, 3, in), y (N, H, W, out), pooled arrays (N, H/2, W/2, out).
#pragma once
#include "convolution.h"
#include "pool.h"

// Σ (y - origin) and Σ (y - origin)² over one image. An origin near y keeps the digits that the square of a large mean would cost.
static void add_moments(const real* y, const real* origin, size_t pixels, int C, Sums& sum, Sums& squares) {
  for (size_t first = 0; first < pixels; first += STRETCH)
    for (int c = 0; c < C; c += LANES) {
      Lanes s = zero(), q = zero();
      const Lanes from = load(origin + c);
      for (size_t p = first; p < std::min(pixels, first + STRETCH); p++) {
        Lanes value = load(y + p * C + c) - from;
        s = s + value;
        q = fused(value, value, q);
      }
      sum.add(c / LANES, s);
      squares.add(c / LANES, q);
    }
}

static void hidden_forward(Sizes s, const real* x, const real* w, const real* gamma, const real* beta, double eps, real* y, Pooled to, real* mean,
                           real* r) {
  const Filters filters = Filters::forward(w, s.in, s.out);
  Convolution convolve(s.in, s.out, 1);
  Buffer<real> padded(padded_size(s.H, s.W, s.in)), origin(s.out);
  Sums sum(s.out), squares(s.out);
  for (int n = 0; n < s.N; n++) {
    real* here = y + n * s.pixels() * s.out;
    pad(x + n * s.pixels() * s.in, padded, s.H, s.W, s.in);
    const Term term[1] = {{padded, filters}};
    convolve(term, 1, here, s.H, s.W);
    if (n == 0) std::copy_n(here + ((size_t)s.H / 2 * s.W + s.W / 2) * s.out, s.out, (real*)origin);
    add_moments(here, origin, s.pixels(), s.out, sum, squares);
  }
  Norm norm(s.out);
  for (int c = 0; c < s.out; c++) {
    const double shifted = sum[c] / s.count(), mu = origin[c] + shifted;
    mean[c] = mu; r[c] = norm.set(c, mu, squares[c] / s.count() - shifted * shifted, eps, gamma[c], beta[c]);
  }
  for (int n = 0; n < s.N; n++) pool(y + n * s.pixels() * s.out, norm, further(to, n * s.pooled() * s.out), s.H, s.W, s.out);
}

// In evaluation mode, without a gradient: nothing but the output is kept.
static void hidden_evaluate(Sizes s, const real* x, const real* w, const Norm& norm, real* output) {
  const Filters filters = Filters::forward(w, s.in, s.out);
  Convolution convolve(s.in, s.out, 1);
  Buffer<real> padded(padded_size(s.H, s.W, s.in)), y(s.pixels() * s.out), y_max(s.pooled() * s.out);
  Buffer<uint8_t> where(s.pooled() * s.out);
  for (int n = 0; n < s.N; n++) {
    pad(x + n * s.pixels() * s.in, padded, s.H, s.W, s.in);
    const Term term[1] = {{padded, filters}};
    convolve(term, 1, y, s.H, s.W);
    pool(y, norm, {output + n * s.pooled() * s.out, y_max, where}, s.H, s.W, s.out);
  }
}

// The gradients by x (unless null), w, γ and β, and by y (unless null), from those of the output and, if not null, of y itself.
static void hidden_backward(Sizes s, const real* grad_output, const real* grad_of_y, const real* x, const real* w, const real* gamma, const real* y,
                            ConstPooled from, const real* mean, const real* r, real* grad_y, real* grad_x, real* grad_w, real* grad_gamma,
                            real* grad_beta) {
  Sums g(s.out), gx(s.out);
  sums_at_maxima(grad_output, from, mean, r, s.N * s.pooled(), s.out, g, gx);
  GradientOfY gradient(s.out);
  for (int c = 0; c < s.out; c++) {
    grad_beta[c] = g[c]; grad_gamma[c] = gx[c];
    gradient.set(c, gamma[c], r[c], mean[c], g[c] / s.count(), gx[c] / s.count());
  }
  const Filters turned = Filters::backward(w, s.out, s.in);
  Convolution convolve(s.out, s.in, 1);
  WeightGradient by_weights(s.in, s.out);
  Buffer<real> padded(padded_size(s.H, s.W, s.in)), padded_gradient(padded_size(s.H, s.W, s.out));
  const size_t row = padded_row(s.W, s.out);
  memset(padded_gradient, 0, padded_size(s.H, s.W, s.out) * sizeof(real));
  for (int n = 0; n < s.N; n++) {
    const size_t image = n * s.pixels() * s.out, values = n * s.pooled() * s.out;
    for (int i = 0; i < s.H; i++)
      for (int j = 0; j < s.W; j++)
        for (int c = 0; c < s.out; c += LANES) {
          const size_t at = image + ((size_t)i * s.W + j) * s.out + c;
          Lanes value = fused(load(gradient.on_y + c), load(y + at), load(gradient.constant + c));
          value = fused(load(gradient.on_g + c), spread(grad_output + values, further(from, values), i, j, c, s.H, s.W, s.out), value);
          if (grad_of_y) value = value + load(grad_of_y + at);
          if (grad_y) store(grad_y + at, value);
          store(padded_gradient + (i + 1) * row + (size_t)(j + 1) * s.out + c, value);
        }
    pad(x + n * s.pixels() * s.in, padded, s.H, s.W, s.in);
    by_weights.add(padded, padded_gradient, s.H, s.W);
    if (grad_x) {
      const Term term[1] = {{padded_gradient, turned}};
      convolve(term, 1, grad_x + n * s.pixels() * s.in, s.H, s.W);
    }
  }
  by_weights.finish(grad_w);
}

// From the cotangents hx, hw, u, v of the gradients by x, w, γ and β: the gradients by grad_output, y, x, w and γ. y counts as an input beside x
// and w: what depends on them through y goes back through hidden_backward, as grad_of_y. The cotangent h of grad_y comes through the two
// convolutions that made the gradients by x and w of it.
static void hidden_second(Sizes s, const real* hx, const real* hw, const real* u, const real* v, const real* grad_output, const real* x, const real* w,
                          const real* gamma, const real* y, const real* grad_y, ConstPooled from, const real* mean, const real* r,
                          const real* grad_gamma, const real* grad_beta, real* by_grad_output, real* by_y, real* by_x, real* by_w,
                          real* by_gamma) {
  ConvolutionTwice convolution(s, w, hw);
  Sums sum_h(s.out), sum_hx(s.out), sum_hg(s.out);
  for (int n = 0; n < s.N; n++) {
    const size_t image = n * s.pixels() * s.out, values = n * s.pooled() * s.out;
    real* h = by_y + image;  // until the means are known
    const size_t input = n * s.pixels() * s.in;
    convolution.add(hx + input, grad_y + image, x + input, h, by_x + input);
    sums_with_x_hat(h, y + image, mean, r, s.pixels(), s.out, sum_h, sum_hx);
    take_at_maxima(h, from.where + values, by_grad_output + values, s.H, s.W, s.out);
  }
  convolution.finish(by_w);
  sum_of_products(by_grad_output, grad_output, from, s.N * s.pooled(), s.out, sum_hg);
  SecondOfChannels second(s.out);
  for (int c = 0; c < s.out; c++) {
    const double count = s.count();
    const Second one{gamma[c], r[c], mean[c], sum_h[c] / count, grad_beta[c] / count, sum_hx[c] / count, grad_gamma[c] / count, sum_hg[c] / count, u[c], v[c]};
    by_gamma[c] = one.grad_gamma(count);
    second.set(c, one);
  }
  for (int n = 0; n < s.N; n++) {
    const size_t image = n * s.pixels() * s.out, values = n * s.pooled() * s.out;
    for (int i = 0; i < s.H; i++)
      for (int j = 0; j < s.W; j++)
        for (int c = 0; c < s.out; c += LANES) {
          const size_t at = image + ((size_t)i * s.W + j) * s.out + c;
          Lanes value = fused(load(second.y_on_y + c), load(y + at), load(second.y_constant + c));
          value = fused(load(second.y_on_h + c), load(by_y + at), value);
          Lanes g = spread(grad_output + values, further(from, values), i, j, c, s.H, s.W, s.out);
          store(by_y + at, fused(load(second.y_on_g + c), g, value));
        }
  }
  second_at_maxima(by_grad_output, from, second, s.N * s.pooled(), s.out);
}
