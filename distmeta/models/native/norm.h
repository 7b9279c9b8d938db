// Batch norm of one channel after another, in double: statistics, and the coefficients of its first and second derivative.
//
// The notation is that of norm.py: x̂ = (y - μ) r is the normalised channel, g the gradient of γ x̂ + β, and h, u, v are the cotangents of the
// gradients by y, γ and β. With <.> the mean over images and pixels, a = <h>, b = <g>, c = <h x̂>, d = <g x̂>, P = <h g>.
// y is the output of the convolution.
#pragma once
#include <cmath>

#include "lanes.h"

// The line that a norm is: γ x̂ + β = scale·y + shift.
struct Norm {
  Buffer<real> scale, shift;

  explicit Norm(int channels) : scale(channels), shift(channels) {}

  // In evaluation mode, where the statistics are given.
  Norm(const real* gamma, const real* beta, const real* mean, const real* variance, double eps, int channels) : Norm(channels) {
    for (int c = 0; c < channels; c++) set(c, mean[c], variance[c], eps, gamma[c], beta[c]);
  }

  // Returns r = 1/√(variance + eps).
  double set(int channel, double mu, double variance, double eps, double gamma, double beta) {
    const double r = 1 / std::sqrt(std::max(variance, 0.0) + eps);
    scale[channel] = gamma * r; shift[channel] = beta - mu * gamma * r;
    return r;
  }
};

// grad of y = on_g·g + on_y·y + constant
struct GradientOfY {
  Buffer<real> on_g, on_y, constant;

  explicit GradientOfY(int channels) : on_g(channels), on_y(channels), constant(channels) {}

  // γ r (g - b - d x̂)
  void set(int channel, double gamma, double r, double mu, double b, double d) {
    const double scale = gamma * r;
    on_g[channel] = scale; on_y[channel] = -scale * d * r; constant[channel] = -scale * b + scale * d * r * mu;
  }
};

// One channel's second derivative.
struct Second {
  double gamma, r, mu, a, b, c, d, P, u, v;

  double scale() const { return gamma * r * r; }
  double on_x_hat() const { return -scale() * (P - a * b - 3 * c * d) - u * r * d; }

  // grad of γ = N r (P - a b - c d)
  double grad_gamma(double count) const { return count * r * (P - a * b - c * d); }

  // grad of g = γ r (h - a - c x̂) + u x̂ + v = g_on_h·h + g_on_y·y + g_constant
  double g_on_h() const { return gamma * r; }
  double g_on_y() const { return (u - gamma * r * c) * r; }
  double g_constant() const { return -gamma * r * a + v - g_on_y() * mu; }

  // grad of y = -γ r² (d h + c g) + u r g + on_x_hat·x̂ + γ r² (a d + b c) - u r b = y_on_h·h + y_on_g·g + y_on_y·y + y_constant
  double y_on_h() const { return -scale() * d; }
  double y_on_g() const { return u * r - scale() * c; }
  double y_on_y() const { return on_x_hat() * r; }
  double y_constant() const { return scale() * (a * d + b * c) - u * r * b - on_x_hat() * r * mu; }
};

// The same of all channels, as vectors.
struct SecondOfChannels {
  Buffer<real> g_on_h, g_on_y, g_constant, y_on_h, y_on_g, y_on_y, y_constant;

  explicit SecondOfChannels(int n) : g_on_h(n), g_on_y(n), g_constant(n), y_on_h(n), y_on_g(n), y_on_y(n), y_constant(n) {}

  void set(int channel, const Second& s) {
    g_on_h[channel] = s.g_on_h(); g_on_y[channel] = s.g_on_y(); g_constant[channel] = s.g_constant();
    y_on_h[channel] = s.y_on_h(); y_on_g[channel] = s.y_on_g(); y_on_y[channel] = s.y_on_y(); y_constant[channel] = s.y_constant();
  }
};

// Sums over pixels, in double; 64 pixels at a time go through real numbers.
constexpr int STRETCH = 64;

class Sums {
 public:
  explicit Sums(int channels) : sums_(channels) { std::fill_n((double*)sums_, channels, 0.0); }
  void add(int group, Lanes values) {
    real one[LANES];
    store(one, values);
    for (int lane = 0; lane < LANES; lane++) sums_[group * LANES + lane] += one[lane];
  }
  double operator[](int channel) const { return ((const double*)sums_)[channel]; }

 private:
  Buffer<double> sums_;
};
