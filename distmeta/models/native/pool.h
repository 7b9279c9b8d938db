// 2×2 max-pooling of normalised values, then ReLU; and the ways back. A row or column left over by an odd size is not pooled.
//
// As in torch the first of equal values wins, and NaN wins over all: it passes the pool and ReLU, and so does its gradient.
#pragma once
#include "norm.h"

// One image's pooled values, channels last: relu(γ x̂ + β) at the maximum, y there, and which of the four pixels that was.
struct Pooled { real *output, *y; uint8_t* where; };
struct ConstPooled { const real *output, *y; const uint8_t* where; };

// What lies so many values further on: an image or a row.
static Pooled further(Pooled all, size_t values) { return {all.output + values, all.y + values, all.where + values}; }
static ConstPooled further(ConstPooled all, size_t values) { return {all.output + values, all.y + values, all.where + values}; }

static INLINE Lanes relu(Lanes a) { return select(a <= zero(), zero(), a); }

// The gradient of γ x̂ + β from that of the output at the same place.
static INLINE Lanes through_relu(const real* output, Lanes gradient) { return select(load(output) <= zero(), zero(), gradient); }

static void pool(const real* y, const Norm& norm, Pooled to, int H, int W, int C) {
  size_t at = 0;
  for (int i = 0; i < H / 2; i++)
    for (int j = 0; j < W / 2; j++)
      for (int c = 0; c < C; c += LANES, at += LANES) {
        const real* corner = y + ((size_t)2 * i * W + 2 * j) * C + c;
        const Lanes scale = load(norm.scale + c);
        Lanes best = load(corner), best_scaled = best * scale;
        Mask where = {};
        UNROLL for (int k = 1; k < 4; k++) {
          Lanes here = load(corner + ((k >> 1) * (size_t)W + (k & 1)) * C), scaled = here * scale;
          Mask larger = (scaled > best_scaled) | is_nan(scaled);
          best = select(larger, here, best);
          best_scaled = select(larger, scaled, best_scaled);
          where = choose(larger, k, where);
        }
        store(to.y + at, best);
        store(to.output + at, relu(fused(best, scale, load(norm.shift + c))));
        store_bytes(to.where + at, where);
      }
}

// Σ g and Σ g x̂, which only the maxima contribute to; `count` pooled pixels of all images.
static void sums_at_maxima(const real* gradient, ConstPooled from, const real* mean, const real* r, size_t count, int C, Sums& g, Sums& gx) {
  for (size_t first = 0; first < count; first += STRETCH)
    for (int c = 0; c < C; c += LANES) {
      Lanes sum = zero(), sum_x = zero();
      const Lanes mu = load(mean + c), inverse = load(r + c);
      for (size_t p = first; p < std::min(count, first + STRETCH); p++) {
        const size_t at = p * C + c;
        Lanes here = through_relu(from.output + at, load(gradient + at));
        sum = sum + here;
        sum_x = fused(here, (load(from.y + at) - mu) * inverse, sum_x);
      }
      g.add(c / LANES, sum);
      gx.add(c / LANES, sum_x);
    }
}

// h (H, W, C) where the maxima were
static void take_at_maxima(const real* h, const uint8_t* where, real* taken, int H, int W, int C) {
  size_t at = 0;
  for (int i = 0; i < H / 2; i++)
    for (int j = 0; j < W / 2; j++)
      for (int c = 0; c < C; c += LANES, at += LANES) {
        const real* corner = h + ((size_t)2 * i * W + 2 * j) * C + c;
        const Mask k = load_bytes(where + at);
        Lanes found = load(corner);
        UNROLL for (int other = 1; other < 4; other++)
          found = select(equals(k, other), load(corner + ((other >> 1) * (size_t)W + (other & 1)) * C), found);
        store(taken + at, found);
      }
}

// g at pixel (i, j) of one image, zero off the maxima; `gradient` is the pooled output's.
static INLINE Lanes spread(const real* gradient, ConstPooled from, int i, int j, int c, int H, int W, int C) {
  if (i / 2 >= H / 2 || j / 2 >= W / 2) return zero();
  const size_t at = ((size_t)(i / 2) * (W / 2) + j / 2) * C + c;
  const Mask here = equals(load_bytes(from.where + at), (i & 1) * 2 + (j & 1));
  return select(here, through_relu(from.output + at, load(gradient + at)), zero());
}

// grad of the pooled gradient = g_on_h·h + g_on_y·y + g_constant at the maxima; `taken` holds h there, and then the result.
static void second_at_maxima(real* taken, ConstPooled from, const SecondOfChannels& second, size_t count, int C) {
  for (size_t at = 0; at < count * C; at += LANES) {
    const int c = at % C;
    Lanes y = fused(load(second.g_on_y + c), load(from.y + at), load(second.g_constant + c));
    store(taken + at, through_relu(from.output + at, fused(load(second.g_on_h + c), load(taken + at), y)));
  }
}

// Σ h and Σ h x̂ over one image
static void sums_with_x_hat(const real* h, const real* y, const real* mean, const real* r, size_t pixels, int C, Sums& sum, Sums& sum_x) {
  for (size_t first = 0; first < pixels; first += STRETCH)
    for (int c = 0; c < C; c += LANES) {
      Lanes s = zero(), q = zero();
      const Lanes mu = load(mean + c), inverse = load(r + c);
      for (size_t p = first; p < std::min(pixels, first + STRETCH); p++) {
        Lanes here = load(h + p * C + c);
        s = s + here;
        q = fused(here, (load(y + p * C + c) - mu) * inverse, q);
      }
      sum.add(c / LANES, s);
      sum_x.add(c / LANES, q);
    }
}

// Σ h g, `taken` being h at the maxima
static void sum_of_products(const real* taken, const real* gradient, ConstPooled from, size_t count, int C, Sums& sum) {
  for (size_t first = 0; first < count; first += STRETCH)
    for (int c = 0; c < C; c += LANES) {
      Lanes s = zero();
      for (size_t p = first; p < std::min(count, first + STRETCH); p++) {
        const size_t at = p * C + c;
        s = fused(load(taken + at), through_relu(from.output + at, load(gradient + at)), s);
      }
      sum.add(c / LANES, s);
    }
}
