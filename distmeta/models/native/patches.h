// The 3×3 patches of images with C colours, as vectors of 9C values and a 1, and the Gram matrix of all of them.
//
// The first block convolves images that need no gradient. With p the patch at a pixel and w a filter, both as vectors, y = w·p is linear in w, so
// every sum over all pixels that batch norm and its derivatives ask for is a form in the one matrix
//
//     M = Σ p pᵀ   (27×27 for colour images)      and      s = Σ p:
//
// Σ y = w·s,  Σ y² = wᵀM w,  Σ y p = M w,  and with h = ω·p for a cotangent ω of w,  Σ h = ω·s,  Σ h y = wᵀM ω,  Σ h p = M ω.
// So neither y nor anything else of full size is stored, statistics are known before the convolution runs, and M serves all three functions.
// The 1 at the end of a patch makes s the matrix's last column.
#pragma once
#include "lanes.h"

// Sizes for C colours: values of a patch, and the lanes that hold them and the 1.
template <int C> struct Patch {
  static constexpr int SIZE = 9 * C;
  static constexpr int GROUPS = SIZE / LANES + 1;
  static constexpr int STRIDE = GROUPS * LANES;
};

// Images (N, C, H, W) in any layout: strides in values.
struct Images {
  const real* values;
  int64_t next_image, next_colour, next_row, next_pixel;
};

// One image → (H+2, W+2, C) with a border of zeros.
template <int C> static void pad_image(const Images& images, int n, real* padded, int H, int W) {
  const size_t row = (size_t)(W + 2) * C;
  memset(padded, 0, row * (H + 2) * sizeof(real));
  for (int y = 0; y < H; y++) {
    const real* from = images.values + n * images.next_image + y * images.next_row;
    real* to = padded + (y + 1) * row + C;
    for (int x = 0; x < W; x++)
      for (int c = 0; c < C; c++) to[x * C + c] = from[x * images.next_pixel + c * images.next_colour];
  }
}

// The patches of one row of pixels: (W, STRIDE), zeros behind the 1.
template <int C> static void patches_of_row(const real* padded, int y, real* patches, int W) {
  const size_t row = (size_t)(W + 2) * C;
  for (int x = 0; x < W; x++) {
    real* to = patches + (size_t)x * Patch<C>::STRIDE;
    for (int k = 0; k < 3; k++) memcpy(to + k * 3 * C, padded + (y + k) * row + (size_t)x * C, 3 * C * sizeof(real));
    to[Patch<C>::SIZE] = 1;
    for (int k = Patch<C>::SIZE + 1; k < Patch<C>::STRIDE; k++) to[k] = 0;
  }
}

// M and s: (SIZE, STRIDE), s in column SIZE.
template <int C> class Gram {
 public:
  explicit Gram(const double* values) : values_(values) {}

  static void measure(Images images, int N, int H, int W, double* values) {
    std::fill_n(values, Patch<C>::SIZE * Patch<C>::STRIDE, 0.0);
    Buffer<real> padded((size_t)(H + 2) * (W + 2) * C), patches((size_t)W * Patch<C>::STRIDE);
    for (int n = 0; n < N; n++) {
      pad_image<C>(images, n, padded, H, W);
      for (int y = 0; y < H; y++) {
        patches_of_row<C>(padded, y, patches, W);
        for (int k = 0; k < Patch<C>::SIZE; k += ROWS) add_rows(patches, k, W, values);
      }
    }
  }

  double sum(int k) const { return values_[k * Patch<C>::STRIDE + Patch<C>::SIZE]; }

  // s·w and M w of every filter: w (SIZE, out) → (out) and (out, SIZE).
  void apply(const real* w, int out, double* dot, double* product) const {
    for (int o = 0; o < out; o++) {
      dot[o] = 0;
      for (int k = 0; k < Patch<C>::SIZE; k++) dot[o] += sum(k) * w[k * out + o];
      for (int k = 0; k < Patch<C>::SIZE; k++) {
        double total = 0;
        for (int l = 0; l < Patch<C>::SIZE; l++) total += values_[k * Patch<C>::STRIDE + l] * w[l * out + o];
        product[o * Patch<C>::SIZE + k] = total;
      }
    }
  }

 private:
  static constexpr int ROWS = PARTS == 1 ? 9 : 3;  // of the matrix, summed at once in registers

  static void add_rows(const real* patches, int k, int W, double* values) {
    Lanes sums[ROWS][Patch<C>::GROUPS];
    UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int g = 0; g < Patch<C>::GROUPS; g++) sums[i][g] = zero();
    DO_NOT_UNROLL for (int x = 0; x < W; x++, patches += Patch<C>::STRIDE) {
      Lanes patch[Patch<C>::GROUPS];
      UNROLL for (int g = 0; g < Patch<C>::GROUPS; g++) patch[g] = load(patches + g * LANES);
      UNROLL for (int i = 0; i < ROWS; i++) {
        Lanes value = broadcast(patches[k + i]);
        UNROLL for (int g = 0; g < Patch<C>::GROUPS; g++) sums[i][g] = fused(value, patch[g], sums[i][g]);
      }
    }
    for (int i = 0; i < ROWS; i++) {
      real row[Patch<C>::STRIDE];
      for (int g = 0; g < Patch<C>::GROUPS; g++) store(row + g * LANES, sums[i][g]);
      for (int l = 0; l <= Patch<C>::SIZE; l++) values[(k + i) * Patch<C>::STRIDE + l] += row[l];
    }
  }

  const double* values_;
};
