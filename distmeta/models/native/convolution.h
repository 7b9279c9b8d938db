// A 3×3 convolution with zero padding by itself: y = convolution of x by w. x (N, H, W, in), w (out, 3, 3, in), y (N, H, W, out).
//
// It is linear in x and in w, so its derivatives are convolutions again: with g the gradient of y, that by x convolves g with the filters turned
// round, that by w sums g times patches; and so on for hx and hw, the cotangents of these two.
#pragma once
#include "winograd.h"

static void convolution_forward(Sizes s, const real* x, const real* w, real* y) {
  const Filters filters = Filters::forward(w, s.in, s.out);
  Convolution convolve(s.in, s.out, 1);
  Buffer<real> padded(padded_size(s.H, s.W, s.in));
  for (int n = 0; n < s.N; n++) {
    pad(x + n * s.pixels() * s.in, padded, s.H, s.W, s.in);
    const Term term[1] = {{padded, filters}};
    convolve(term, 1, y + n * s.pixels() * s.out, s.H, s.W);
  }
}

// The gradients by x (unless null) and w.
static void convolution_backward(Sizes s, const real* g, const real* x, const real* w, real* grad_x, real* grad_w) {
  const Filters turned = Filters::backward(w, s.out, s.in);
  Convolution convolve_back(s.out, s.in, 1);
  WeightGradient by_weights(s.in, s.out);
  Buffer<real> padded(padded_size(s.H, s.W, s.in)), padded_gradient(padded_size(s.H, s.W, s.out));
  for (int n = 0; n < s.N; n++) {
    pad(x + n * s.pixels() * s.in, padded, s.H, s.W, s.in);
    pad(g + n * s.pixels() * s.out, padded_gradient, s.H, s.W, s.out);
    by_weights.add(padded, padded_gradient, s.H, s.W);
    if (!grad_x) continue;
    const Term term[1] = {{padded_gradient, turned}};
    convolve_back(term, 1, grad_x + n * s.pixels() * s.in, s.H, s.W);
  }
  by_weights.finish(grad_w);
}

// The second derivative, image after image: from hx (null if the gradient by x was not asked for) and hw, the gradients by g, x (null with hx) and w.
class ConvolutionTwice {
 public:
  ConvolutionTwice(Sizes s, const real* w, const real* hw)
      : s_(s), filters_(Filters::forward(w, s.in, s.out)), other_(Filters::forward(hw, s.in, s.out)), turned_(Filters::backward(hw, s.out, s.in)),
        convolve_(s.in, s.out, 2), convolve_back_(s.out, s.in, 1), by_weights_(s.in, s.out), padded_x_(padded_size(s.H, s.W, s.in)),
        padded_h_(padded_size(s.H, s.W, s.in)), padded_gradient_(padded_size(s.H, s.W, s.out)) {}

  // One image's.
  void add(const real* hx, const real* g, const real* x, real* by_g, real* by_x) {
    pad(x, padded_x_, s_.H, s_.W, s_.in);
    if (hx) {
      pad(hx, padded_h_, s_.H, s_.W, s_.in);
      pad(g, padded_gradient_, s_.H, s_.W, s_.out);
      const Term back[1] = {{padded_gradient_, turned_}};
      convolve_back_(back, 1, by_x, s_.H, s_.W);
      by_weights_.add(padded_h_, padded_gradient_, s_.H, s_.W);
    }
    const Term terms[2] = {{padded_h_, filters_}, {padded_x_, other_}};
    convolve_(hx ? terms : terms + 1, hx ? 2 : 1, by_g, s_.H, s_.W);
  }

  void finish(real* by_w) { by_weights_.finish(by_w); }

 private:
  const Sizes s_;
  const Filters filters_, other_, turned_;
  Convolution convolve_, convolve_back_;
  WeightGradient by_weights_;
  Buffer<real> padded_x_, padded_h_, padded_gradient_;
};

static void convolution_second(Sizes s, const real* hx, const real* hw, const real* g, const real* x, const real* w, real* by_g, real* by_x,
                               real* by_w) {
  ConvolutionTwice twice(s, w, hw);
  for (int n = 0; n < s.N; n++) {
    const size_t input = n * s.pixels() * s.in, image = n * s.pixels() * s.out;
    twice.add(hx ? hx + input : nullptr, g + image, x + input, by_g + image, hx ? by_x + input : nullptr);
  }
  twice.finish(by_w);
}
