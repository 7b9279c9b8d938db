// The network's first block: images with C colours that need no gradient, convolved by w, batch norm over all images, 2×2 max-pool, ReLU.
// Nothing of the images' size is stored: see patches.h. Pooled arrays (N, H/2, W/2, out), w (out, 3, 3, C), S (out, 9C).
#pragma once
#include "patches.h"
#include "pool.h"
#include "winograd.h"

// (out, 3, 3, C) → (9C, out), the lanes being output channels.
template <int C> static void by_patch(const real* w, real* filters, int out) {
  for (int o = 0; o < out; o++)
    for (int k = 0; k < Patch<C>::SIZE; k++) filters[(size_t)k * out + o] = w[(size_t)o * Patch<C>::SIZE + k];
}

// T pixels of one row, N groups of output channels.
template <int C, int T, int N> static INLINE void convolve_pixels(const real* padded, size_t row, const real* filters, int out, real* y) {
  Lanes sums[T][N];
  UNROLL for (int t = 0; t < T; t++) UNROLL for (int n = 0; n < N; n++) sums[t][n] = zero();
  for (int ky = 0; ky < 3; ky++)
    DO_NOT_UNROLL for (int k = 0; k < 3 * C; k++, filters += out) {
      Lanes w[N];
      UNROLL for (int n = 0; n < N; n++) w[n] = load(filters + n * LANES);
      UNROLL for (int t = 0; t < T; t++) {
        Lanes value = broadcast(padded[ky * row + t * C + k]);
        UNROLL for (int n = 0; n < N; n++) sums[t][n] = fused(value, w[n], sums[t][n]);
      }
    }
  UNROLL for (int t = 0; t < T; t++) UNROLL for (int n = 0; n < N; n++) store(y + (size_t)t * out + n * LANES, sums[t][n]);
}

// Rows i and i+1 of the convolution → (2, W, out), while they are in the nearest cache. The last pixels of a row may be computed twice.
template <int C> static void convolve_two_rows(const real* padded, int i, const real* filters, real* y, int W, int out) {
  const size_t row = (size_t)(W + 2) * C;
  with_constant<1, FEW, MANY, TILES>(W / TILES ? TILES : W / MANY ? MANY : W / FEW ? FEW : 1, [&](auto T) {
    for (int o = 0; o < out; o += GROUPS * LANES)
      with_constant<1, GROUPS>((out - o) / LANES, [&](auto N) {
        for (int k = 0; k < 2; k++)
          for (int next = 0; next < W; next += T) {
            const int x = std::min(next, W - T);
            convolve_pixels<C, T, N>(padded + (i + k) * row + (size_t)x * C, row, filters + o, out, y + ((size_t)k * W + x) * out + o);
          }
      });
  });
}

// Calls body with two rows of the convolution, (2, W, out), and the place of their row in pooled arrays, for all rows of every image.
template <int C, class Body> static void with_two_rows(Sizes s, Images x, const real* filters, Body body) {
  Buffer<real> padded(bordered_size<C>(s.H, s.W)), y((size_t)2 * s.W * s.out);
  const size_t pooled_row = (size_t)(s.W / 2) * s.out;
  for (int n = 0; n < s.N; n++) {
    pad_image<C>(x, n, padded, s.H, s.W);
    for (int i = 0; i < s.H / 2; i++) {
      convolve_two_rows<C>(padded, 2 * i, filters, y, s.W, s.out);
      body((const real*)y, n * s.pooled() * s.out + i * pooled_row);
    }
  }
}

// relu(γ x̂ + β) of the convolution's maxima, for every image.
template <int C> static void convolve_and_pool(Sizes s, Images x, const real* filters, const Norm& norm, Pooled to) {
  with_two_rows<C>(s, x, filters, [&](const real* y, size_t at) { pool(y, norm, further(to, at), 2, s.W, s.out); });
}

// In evaluation mode, without a gradient.
template <int C> static void first_evaluate(Sizes s, Images x, const real* w, const Norm& norm, real* output) {
  Buffer<real> filters((size_t)Patch<C>::SIZE * s.out), y_max(s.N * s.pooled() * s.out);
  Buffer<uint8_t> where(s.N * s.pooled() * s.out);
  by_patch<C>(w, filters, s.out);
  convolve_and_pool<C>(s, x, filters, norm, {output, y_max, where});
}

template <int C>
static void first_forward(Sizes s, Images x, const real* w, const real* gamma, const real* beta, double eps, double* gram, Pooled to,
                          real* mean, real* r) {
  constexpr int SIZE = Patch<C>::SIZE;
  Gram<C>::measure(x, s.N, s.H, s.W, gram);
  const Gram<C> M(gram);
  Buffer<real> filters((size_t)SIZE * s.out);
  Buffer<double> sum(s.out), Mw((size_t)s.out * SIZE);
  by_patch<C>(w, filters, s.out);
  M.apply(filters, s.out, sum, Mw);
  Norm norm(s.out);
  for (int o = 0; o < s.out; o++) {
    double squares = 0;  // wᵀM w
    for (int k = 0; k < SIZE; k++) squares += Mw[o * SIZE + k] * filters[(size_t)k * s.out + o];
    const double mu = sum[o] / s.count();
    mean[o] = mu; r[o] = norm.set(o, mu, squares / s.count() - mu * mu, eps, gamma[o], beta[o]);
  }
  convolve_and_pool<C>(s, x, filters, norm, to);
}

// S = Σ g p: only the maxima have a gradient g, so only their patches are read.
template <int C> static void gradient_times_patches(Sizes s, Images x, const real* grad_output, ConstPooled from, double* S) {
  constexpr int SIZE = Patch<C>::SIZE, STRIDE = Patch<C>::STRIDE, G = Patch<C>::GROUPS;
  Buffer<real> padded(bordered_size<C>(s.H, s.W)), patches(s.W * STRIDE + patches_size<C>(s.W)), g((size_t)(s.W / 2) * s.out), image((size_t)s.out * STRIDE);
  const int corners[4] = {0, STRIDE, s.W * STRIDE, (s.W + 1) * STRIDE};
  const size_t pooled_row = (size_t)(s.W / 2) * s.out;
  std::fill_n(S, (size_t)s.out * SIZE, 0.0);
  for (int n = 0; n < s.N; n++) {
    pad_image<C>(x, n, padded, s.H, s.W);
    std::fill_n((real*)image, (size_t)s.out * STRIDE, real(0));
    for (int i = 0; i < s.H / 2; i++) {
      for (int k = 0; k < 2; k++) patches_of_row<C>(padded, 2 * i + k, patches + (size_t)k * s.W * STRIDE, s.W);
      const size_t at = n * s.pooled() * s.out + i * pooled_row;
      for (size_t p = 0; p < pooled_row; p += LANES) store(g + p, through_relu(from.output + at + p, load(grad_output + at + p)));
      for (int o = 0; o < s.out; o += CHANNELS) {
        Lanes sums[CHANNELS][G];
        UNROLL for (int c = 0; c < CHANNELS; c++) UNROLL for (int k = 0; k < G; k++) sums[c][k] = load(image + (o + c) * STRIDE + k * LANES);
        DO_NOT_UNROLL for (int j = 0; j < s.W / 2; j++) {
          const real* pair = patches + (size_t)2 * j * STRIDE;
          UNROLL for (int c = 0; c < CHANNELS; c++) {
            const size_t value = (size_t)j * s.out + o + c;
            const real* patch = pair + corners[from.where[at + value]];
            const Lanes here = broadcast(g[value]);
            UNROLL for (int k = 0; k < G; k++) sums[c][k] = fused(here, load(patch + k * LANES), sums[c][k]);
          }
        }
        UNROLL for (int c = 0; c < CHANNELS; c++) UNROLL for (int k = 0; k < G; k++) store(image + (o + c) * STRIDE + k * LANES, sums[c][k]);
      }
    }
    for (int o = 0; o < s.out; o++)
      for (int k = 0; k < SIZE; k++) S[o * SIZE + k] += image[o * STRIDE + k];
  }
}

// The gradients by w, γ and β; S for the second derivative. grad of w = Σ γ r (g - b - d x̂) p.
template <int C>
static void first_backward(Sizes s, Images x, const real* grad_output, const real* w, const real* gamma, ConstPooled from, const real* mean,
                           const real* r, const double* gram, double* S, real* grad_w, real* grad_gamma, real* grad_beta) {
  constexpr int SIZE = Patch<C>::SIZE;
  const Gram<C> M(gram);
  Sums g(s.out), gx(s.out);
  sums_at_maxima(grad_output, from, mean, r, s.N * s.pooled(), s.out, g, gx);
  gradient_times_patches<C>(s, x, grad_output, from, S);
  Buffer<real> filters((size_t)SIZE * s.out);
  Buffer<double> sum(s.out), Mw((size_t)s.out * SIZE);
  by_patch<C>(w, filters, s.out);
  M.apply(filters, s.out, sum, Mw);
  for (int o = 0; o < s.out; o++) {
    grad_beta[o] = g[o]; grad_gamma[o] = gx[o];
    const double scale = (double)gamma[o] * r[o], b = g[o] / s.count(), d = gx[o] / s.count();
    for (int k = 0; k < SIZE; k++) {
      const double x_hat_p = r[o] * (Mw[o * SIZE + k] - mean[o] * M.sum(k));  // Σ x̂ p
      grad_w[o * SIZE + k] = scale * (S[o * SIZE + k] - b * M.sum(k) - d * x_hat_p);
    }
  }
}

// From the cotangents hw, u, v of the gradients by w, γ and β: the gradients by grad_output, w and γ. Here h = hw·p.
template <int C>
static void first_second(Sizes s, Images x, const real* hw, const real* u, const real* v, const real* w, const real* gamma, ConstPooled from,
                         const real* mean, const real* r, const real* grad_gamma, const real* grad_beta, const double* gram, const double* S,
                         real* by_grad_output, real* by_w, real* by_gamma) {
  constexpr int SIZE = Patch<C>::SIZE;
  const Gram<C> M(gram);
  Buffer<real> filters((size_t)SIZE * s.out), others((size_t)SIZE * s.out);
  Buffer<double> sum(s.out), sum_h(s.out), Mw((size_t)s.out * SIZE), Mh((size_t)s.out * SIZE);
  by_patch<C>(w, filters, s.out);
  by_patch<C>(hw, others, s.out);
  M.apply(filters, s.out, sum, Mw);
  M.apply(others, s.out, sum_h, Mh);
  SecondOfChannels second(s.out);
  for (int o = 0; o < s.out; o++) {
    double hy = 0, hg = 0;  // Σ h y = wᵀM hw, Σ h g = hw·S
    for (int k = 0; k < SIZE; k++) {
      hy += Mh[o * SIZE + k] * filters[(size_t)k * s.out + o];
      hg += S[o * SIZE + k] * others[(size_t)k * s.out + o];
    }
    const double count = s.count(), a = sum_h[o] / count, c = r[o] * (hy / count - mean[o] * a);
    const Second one{gamma[o], r[o], mean[o], a, grad_beta[o] / count, c, grad_gamma[o] / count, hg / count, u[o], v[o]};
    by_gamma[o] = one.grad_gamma(count);
    second.set(o, one);
    // grad of w = Σ (grad of y) p
    for (int k = 0; k < SIZE; k++)
      by_w[o * SIZE + k] = one.y_on_h() * Mh[o * SIZE + k] + one.y_on_g() * S[o * SIZE + k] + one.y_on_y() * Mw[o * SIZE + k] + one.y_constant() * M.sum(k);
  }
  with_two_rows<C>(s, x, others, [&](const real* h, size_t at) { take_at_maxima(h, from.where + at, by_grad_output + at, 2, s.W, s.out); });
  second_at_maxima(by_grad_output, from, second, s.N * s.pooled(), s.out);
}
