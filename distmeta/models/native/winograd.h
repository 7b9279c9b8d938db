// 3×3 convolution with zero padding by Winograd's F(2×2, 3×3): Lavin & Gray 2016 (arXiv:1509.09308), section 4.1.
//
// A tile of 2×2 outputs needs 4×4 inputs d; with the filter w it is Aᵀ[(G w Gᵀ) ∘ (Bᵀ d B)]A, summed over input channels between the brackets:
// 16 products where the direct way takes 36. Its derivatives are the adjoints: by d the same convolution with the filter turned round and
// its channels exchanged, by w the sum Gᵀ[Σ (Bᵀ d B) ∘ (A g Aᵀ)]G over tiles, g being the gradient of the outputs.
// The 16 positions of a transformed tile are its frequencies, f.
#pragma once
#include "lanes.h"

// Output channels, in groups of lanes, and tiles that are accumulated at once in registers.
constexpr int GROUPS = PARTS == 1 ? 2 : 1;
constexpr int TILES = (REGISTERS * 3 / 4) / (PARTS * GROUPS), MANY = 2 * TILES / 3, FEW = TILES / 3;
constexpr int CHANNELS = PARTS == 1 ? 8 : 4;  // input channels at once in the weight gradient
constexpr int QUEUE = 28;                     // tiles that one chain of its sums runs over

static INLINE size_t padded_row(int W, int channels) { return (size_t)(W + 3) * channels; }
static INLINE size_t padded_size(int H, int W, int channels) { return padded_row(W, channels) * (H + 3); }

// (H, W, C) → (H+3, W+3, C): zeros, one row and column before and two after, because tiles of an odd size reach one further.
static void pad(const real* image, real* padded, int H, int W, int C) {
  size_t row = padded_row(W, C);
  memset(padded, 0, padded_size(H, W, C) * sizeof(real));
  for (int y = 0; y < H; y++) memcpy(padded + (y + 1) * row + C, image + (size_t)y * W * C, (size_t)W * C * sizeof(real));
}

// w (3×3) → G w Gᵀ (4×4)
static INLINE void filter_to_frequencies(const Lanes (&w)[9], Lanes (&u)[16]) {
  const Lanes half = broadcast(real(.5));
  Lanes a[4][3];
  UNROLL for (int k = 0; k < 3; k++) {
    Lanes sum = w[k] + w[6 + k];
    a[0][k] = w[k]; a[1][k] = half * (sum + w[3 + k]); a[2][k] = half * (sum - w[3 + k]); a[3][k] = w[6 + k];
  }
  UNROLL for (int f = 0; f < 4; f++) {
    Lanes sum = a[f][0] + a[f][2];
    u[4 * f] = a[f][0]; u[4 * f + 1] = half * (sum + a[f][1]); u[4 * f + 2] = half * (sum - a[f][1]); u[4 * f + 3] = a[f][2];
  }
}

// u (4×4) → Gᵀ u G (3×3)
static INLINE void frequencies_to_filter(const Lanes (&u)[16], Lanes (&w)[9]) {
  const Lanes half = broadcast(real(.5));
  Lanes a[3][4];
  UNROLL for (int f = 0; f < 4; f++) {
    Lanes sum = half * (u[4 + f] + u[8 + f]);
    a[0][f] = u[f] + sum; a[1][f] = half * (u[4 + f] - u[8 + f]); a[2][f] = sum + u[12 + f];
  }
  UNROLL for (int k = 0; k < 3; k++) {
    Lanes sum = half * (a[k][1] + a[k][2]);
    w[3 * k] = a[k][0] + sum; w[3 * k + 1] = half * (a[k][1] - a[k][2]); w[3 * k + 2] = sum + a[k][3];
  }
}

// A convolution's filters at their frequencies: (16, out/16, in, 16), the lanes being output channels.
class Filters {
 public:
  const int in, out;

  // From weights (out, 3, 3, in).
  static Filters forward(const real* weights, int in, int out) {
    Filters filters(in, out);
    real taps[9][LANES];
    for (int o = 0; o < out / LANES; o++)
      for (int c = 0; c < in; c++) {
        for (int k = 0; k < 9; k++)
          for (int lane = 0; lane < LANES; lane++) taps[k][lane] = weights[((size_t)(o * LANES + lane) * 9 + k) * in + c];
        Lanes w[9];
        for (int k = 0; k < 9; k++) w[k] = load(taps[k]);
        filters.keep(w, o, c);
      }
    return filters;
  }

  // Those of the derivative by the images of a convolution with weights (in, 3, 3, out): turned round, channels exchanged.
  static Filters backward(const real* weights, int in, int out) {
    Filters filters(in, out);
    for (int o = 0; o < out / LANES; o++)
      for (int c = 0; c < in; c++) {
        Lanes w[9];
        for (int k = 0; k < 9; k++) w[k] = load(weights + ((size_t)c * 9 + 8 - k) * out + o * LANES);
        filters.keep(w, o, c);
      }
    return filters;
  }

  const real* at(int f, int o) const { return u_ + ((size_t)f * (out / LANES) + o) * in * LANES; }

 private:
  Filters(int in, int out) : in(in), out(out), u_((size_t)16 * in * out) {}
  void keep(const Lanes (&w)[9], int o, int c) {
    Lanes u[16];
    filter_to_frequencies(w, u);
    for (int f = 0; f < 16; f++) store((real*)at(f, o) + c * LANES, u[f]);
  }
  Buffer<real> u_;
};

// Bᵀ d B of the 4×4 inputs at `image`, sixteen channels, one frequency every `step` values.
static INLINE void tile_to_frequencies(const real* image, size_t row, int C, real* v, size_t step) {
  Lanes t[4][4];
  UNROLL for (int j = 0; j < 4; j++) {
    const real* d = image + j * C;
    Lanes d0 = load(d), d1 = load(d + row), d2 = load(d + 2 * row), d3 = load(d + 3 * row);
    t[0][j] = d0 - d2; t[1][j] = d1 + d2; t[2][j] = d2 - d1; t[3][j] = d1 - d3;
  }
  UNROLL for (int f = 0; f < 4; f++) {
    real* to = v + 4 * f * step;
    store(to, t[f][0] - t[f][2]); store(to + step, t[f][1] + t[f][2]);
    store(to + 2 * step, t[f][2] - t[f][1]); store(to + 3 * step, t[f][1] - t[f][3]);
  }
}

// A g Aᵀ of the 2×2 gradients at `g`: the adjoint of the way back from frequencies to outputs.
static INLINE void gradient_to_frequencies(const real* g, size_t row, int C, real* m, size_t step) {
  Lanes a = load(g), b = load(g + C), c = load(g + row), d = load(g + row + C);
  Lanes r[4][2] = {{a, b}, {a + c, b + d}, {a - c, b - d}, {zero() - c, zero() - d}};
  UNROLL for (int f = 0; f < 4; f++) {
    real* to = m + 4 * f * step;
    store(to, r[f][0]); store(to + step, r[f][0] + r[f][1]);
    store(to + 2 * step, r[f][0] - r[f][1]); store(to + 3 * step, zero() - r[f][1]);
  }
}

// Aᵀ m A: the 2×2 outputs of sixteen channels, those that lie in the image.
static INLINE void frequencies_to_outputs(const real* m, size_t step, real* out, size_t row, int C, bool right, bool below) {
  Lanes r[2][4];
  UNROLL for (int j = 0; j < 4; j++) {
    Lanes m0 = load(m + j * step), m1 = load(m + (4 + j) * step), m2 = load(m + (8 + j) * step), m3 = load(m + (12 + j) * step);
    r[0][j] = m0 + m1 + m2; r[1][j] = m1 - m2 - m3;
  }
  store(out, r[0][0] + r[0][1] + r[0][2]);
  if (right) store(out + C, r[0][1] - r[0][2] - r[0][3]);
  if (below) store(out + row, r[1][0] + r[1][1] + r[1][2]);
  if (right && below) store(out + row + C, r[1][1] - r[1][2] - r[1][3]);
}

// Σ over input channels of T transformed tiles (in/16, T, 16) times filters (in, 16) of N groups of output channels.
template <int T, int N> static INLINE void add_products(const real* v, const real* u, size_t next_group, int in, Lanes (&sums)[T][N]) {
  for (int g = 0; g < in / LANES; g++, v += T * LANES) {
    DO_NOT_UNROLL for (int c = 0; c < LANES; c++, u += LANES) {
      Lanes w[N];
      UNROLL for (int n = 0; n < N; n++) w[n] = load(u + n * next_group);
      UNROLL for (int t = 0; t < T; t++) {
        Lanes value = broadcast(v[t * LANES + c]);
        UNROLL for (int n = 0; n < N; n++) sums[t][n] = fused(value, w[n], sums[t][n]);
      }
    }
  }
}

// A convolution of padded images; a second one may be added to it.
struct Term { const real* padded; const Filters& filters; };

class Convolution {
 public:
  Convolution(int in, int out, int terms)
      : in_(in), out_(out), v_((size_t)terms * 16 * TILES * in), m_((size_t)16 * TILES * GROUPS * LANES) {}

  // The sum of `count` terms → (H, W, out).
  void operator()(const Term* terms, int count, real* output, int H, int W) {
    const int tiles = (W + 1) / 2 * ((H + 1) / 2);
    const int rounds = (tiles + TILES - 1) / TILES, most = (tiles + rounds - 1) / rounds;  // rounds of one length
    for (int first = 0; first < tiles; first += most) {
      const int here = std::min(most, tiles - first);
      with_constant<FEW, MANY, TILES>(here, [&](auto T) {
        for (int i = 0; i < count; i++) transform<T>(terms[i].padded, v(i, T), first, here, W);
        for (int o = 0; o < out_ / LANES; o += GROUPS)
          with_constant<1, GROUPS>(out_ / LANES - o, [&](auto N) {
            multiply<T, N>(terms, count, o);
            put<T, N>(first, here, o, output, H, W);
          });
      });
    }
  }

 private:
  real* v(int term, int T) { return v_ + (size_t)term * 16 * T * in_; }

  // `here` tiles in T slots: what is in the others goes nowhere.
  template <int T> void transform(const real* padded, real* v, int first, int here, int W) {
    const int across = (W + 1) / 2;
    const size_t row = padded_row(W, in_);
    for (int t = 0; t < here; t++) {
      const real* tile = padded + (first + t) / across * 2 * row + (size_t)((first + t) % across * 2) * in_;
      for (int g = 0; g < in_ / LANES; g++) tile_to_frequencies(tile + g * LANES, row, in_, v + (g * T + t) * LANES, (size_t)T * in_);
    }
  }

  template <int T, int N> void multiply(const Term* terms, int count, int o) {
    for (int f = 0; f < 16; f++) {
      Lanes sums[T][N];
      UNROLL for (int t = 0; t < T; t++) UNROLL for (int n = 0; n < N; n++) sums[t][n] = zero();
      for (int i = 0; i < count; i++)
        add_products<T, N>(v(i, T) + (size_t)f * T * in_, terms[i].filters.at(f, o), (size_t)in_ * LANES, in_, sums);
      UNROLL for (int t = 0; t < T; t++) UNROLL for (int n = 0; n < N; n++) store(m_ + ((size_t)(f * T + t) * N + n) * LANES, sums[t][n]);
    }
  }

  template <int T, int N> void put(int first, int here, int o, real* output, int H, int W) {
    const int across = (W + 1) / 2;
    for (int t = 0; t < here; t++) {
      const int y = (first + t) / across * 2, x = (first + t) % across * 2;
      for (int n = 0; n < N; n++)
        frequencies_to_outputs(m_ + (size_t)(t * N + n) * LANES, (size_t)T * N * LANES, output + ((size_t)y * W + x) * out_ + (o + n) * LANES,
                               (size_t)W * out_, out_, x + 1 < W, y + 1 < H);
    }
  }

  const int in_, out_;
  Buffer<real> v_, m_;
};

// The derivative by the weights, summed over images. Tiles of all images queue up, and each chain of additions runs over one full queue, then
// over queues: a single chain over all tiles would lose two bits more.
class WeightGradient {
 public:
  WeightGradient(int in, int out)
      : in_(in), out_(out), v_((size_t)16 * QUEUE * in), m_((size_t)16 * QUEUE * out), total_((size_t)16 * in * out) {
    memset(total_, 0, (size_t)16 * in * out * sizeof(real));
  }

  // One image: its padded inputs and the padded gradient of its outputs.
  void add(const real* padded, const real* padded_gradient, int H, int W) {
    const size_t row = padded_row(W, in_), gradient_row = padded_row(W, out_);
    for (int y = 0; y < H; y += 2)
      for (int x = 0; x < W; x += 2) {
        for (int g = 0; g < in_ / LANES; g++)
          tile_to_frequencies(padded + y * row + (size_t)x * in_ + g * LANES, row, in_, v_ + (size_t)(g * QUEUE + queued_) * LANES, (size_t)QUEUE * in_);
        for (int o = 0; o < out_ / LANES; o++)
          gradient_to_frequencies(padded_gradient + (y + 1) * gradient_row + (size_t)(x + 1) * out_ + o * LANES, gradient_row, out_,
                                  m_ + (size_t)(o * QUEUE + queued_) * LANES, (size_t)QUEUE * out_);
        if (++queued_ == QUEUE) flush();
      }
  }

  // → (out, 3, 3, in)
  void finish(real* weights) {
    flush();
    for (int o = 0; o < out_ / LANES; o++)
      for (int c = 0; c < in_; c++) {
        Lanes u[16], w[9];
        for (int f = 0; f < 16; f++) u[f] = load(total_ + (((size_t)f * (out_ / LANES) + o) * in_ + c) * LANES);
        frequencies_to_filter(u, w);
        real taps[9][LANES];
        for (int k = 0; k < 9; k++) store(taps[k], w[k]);
        for (int k = 0; k < 9; k++)
          for (int lane = 0; lane < LANES; lane++) weights[((size_t)(o * LANES + lane) * 9 + k) * in_ + c] = taps[k][lane];
      }
  }

 private:
  void flush() {
    for (int f = 0; f < 16 && queued_; f++)
      for (int o = 0; o < out_ / LANES; o += GROUPS)
        with_constant<1, GROUPS>(out_ / LANES - o, [&](auto N) {
          for (int c = 0; c < in_; c += CHANNELS) accumulate<N>(f, o, c);
        });
    queued_ = 0;
  }

  template <int N> void accumulate(int f, int o, int c) {
    const real* v = v_ + ((size_t)f * in_ / LANES + c / LANES) * QUEUE * LANES + c % LANES;
    const real* m = m_ + ((size_t)f * out_ / LANES + o) * QUEUE * LANES;
    Lanes sums[CHANNELS][N];
    UNROLL for (int i = 0; i < CHANNELS; i++) UNROLL for (int n = 0; n < N; n++) sums[i][n] = zero();
    DO_NOT_UNROLL for (int t = 0; t < queued_; t++) {
      Lanes g[N];
      UNROLL for (int n = 0; n < N; n++) g[n] = load(m + (size_t)(n * QUEUE + t) * LANES);
      UNROLL for (int i = 0; i < CHANNELS; i++) {
        Lanes value = broadcast(v[t * LANES + i]);
        UNROLL for (int n = 0; n < N; n++) sums[i][n] = fused(value, g[n], sums[i][n]);
      }
    }
    UNROLL for (int i = 0; i < CHANNELS; i++)
      UNROLL for (int n = 0; n < N; n++) {
        real* to = total_ + (((size_t)f * (out_ / LANES) + o + n) * in_ + c + i) * LANES;
        store(to, load(to) + sums[i][n]);
      }
  }

  const int in_, out_;
  int queued_ = 0;
  Buffer<real> v_, m_, total_;
};
