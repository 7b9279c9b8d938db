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

// Sizes for C colours: values of a patch's row and of a patch, and the lanes that hold a patch and the 1.
template <int C> struct Patch {
  static constexpr int ROW = 3 * C;
  static constexpr int SIZE = 3 * ROW;
  static constexpr int GROUPS = SIZE / LANES + 1;
  static constexpr int STRIDE = GROUPS * LANES;
};

// Images (N, C, H, W) in any layout: strides in values.
struct Images {
  const real* values;
  int64_t next_image, next_colour, next_row, next_pixel;
};

// Values of an image with a border of zeros, one row more below, and what a vector that begins at the last value reads beyond it.
template <int C> static INLINE size_t bordered_size(int H, int W) { return (size_t)(H + 3) * (W + 2) * C + LANES; }
template <int C> static INLINE size_t patches_size(int W) { return (size_t)W * Patch<C>::STRIDE + LANES; }

// One image → (H+3, W+2, C).
template <int C> static void pad_image(const Images& images, int n, real* padded, int H, int W) {
  const size_t row = (size_t)(W + 2) * C;
  memset(padded, 0, bordered_size<C>(H, W) * sizeof(real));
  for (int y = 0; y < H; y++) {
    const real* from = images.values + n * images.next_image + y * images.next_row;
    real* to = padded + (y + 1) * row + C;
    for (int x = 0; x < W; x++)
      for (int c = 0; c < C; c++) to[x * C + c] = from[x * images.next_pixel + c * images.next_colour];
  }
}

// The patches of one row of pixels: (W, STRIDE). What stands behind the 1 has no meaning: whole vectors are copied, each over the last one's end.
template <int C> static void patches_of_row(const real* padded, int y, real* patches, int W) {
  const size_t row = (size_t)(W + 2) * C;
  for (int x = 0; x < W; x++) {
    const real* from = padded + y * row + (size_t)x * C;
    real* to = patches + (size_t)x * Patch<C>::STRIDE;
    for (int k = 0; k < 3; k++) store(to + k * Patch<C>::ROW, load(from + k * row));
    to[Patch<C>::SIZE] = 1;
  }
}

// M and s: (SIZE, STRIDE), s in column SIZE.
//
// A patch p(y, x) is three rows of the bordered image, q(y, x), q(y+1, x) and q(y+2, x), so block (i, j) of M is the sum of
// A(y) = Σ_x q(y, x) q(y+j-i, x)ᵀ over y from i to H-1+i. These sums share all but one term, for q is zero in rows 0 and H+1: the products with
// a patch's first row are enough, over y from 1 to H, and a third of the work.
template <int C> class Gram {
 public:
  explicit Gram(const double* values) : values_(values) {}

  static void measure(Images images, int N, int H, int W, double* values) {
    Products all = {}, first = {}, last = {};
    Buffer<real> padded(bordered_size<C>(H, W)), patches(patches_size<C>(W));
    for (int n = 0; n < N; n++) {
      pad_image<C>(images, n, padded, H, W);
      for (int y = 1; y <= H; y++) {
        patches_of_row<C>(padded, y, patches, W);
        const Products row = products(patches, W);
        all.add(row);
        if (y == 1) first.add(row);
        if (y == H) last.add(row);
      }
    }
    for (int i = 0; i < 3; i++)
      for (int a = 0; a < ROW; a++) {
        const auto total = [&](int l) { return all.of[a][l] - (i == 0 ? last.of[a][l] : i == 2 ? first.of[a][l] : 0); };
        const int k = i * ROW + a;
        values[k * STRIDE + SIZE] = total(SIZE);
        for (int l = i * ROW; l < SIZE; l++) values[k * STRIDE + l] = values[l * STRIDE + k] = total(l - i * ROW);
      }
  }

  double sum(int k) const { return values_[k * STRIDE + SIZE]; }

  // s·w and M w of every filter: w (SIZE, out) → (out) and (out, SIZE).
  void apply(const real* w, int out, double* dot, double* product) const {
    for (int o = 0; o < out; o++) {
      dot[o] = 0;
      for (int k = 0; k < SIZE; k++) dot[o] += sum(k) * w[k * out + o];
      for (int k = 0; k < SIZE; k++) {
        double total = 0;
        for (int l = 0; l < SIZE; l++) total += values_[k * STRIDE + l] * w[l * out + o];
        product[o * SIZE + k] = total;
      }
    }
  }

 private:
  static constexpr int ROW = Patch<C>::ROW, SIZE = Patch<C>::SIZE, STRIDE = Patch<C>::STRIDE, GROUPS = Patch<C>::GROUPS;
  static constexpr int AT_ONCE = PARTS == 1 ? ROW : 3;  // rows that are summed in registers

  // Σ q pᵀ over pixels, q being the patch's first row.
  struct Products {
    double of[ROW][STRIDE];
    void add(const Products& other) {
      for (int k = 0; k < ROW; k++)
        for (int l = 0; l <= SIZE; l++) of[k][l] += other.of[k][l];
    }
  };

  // Of one row of pixels.
  static Products products(const real* patches, int W) {
    Products products;
    for (int k = 0; k < ROW; k += AT_ONCE) {
      Lanes sums[AT_ONCE][GROUPS];
      UNROLL for (int i = 0; i < AT_ONCE; i++) UNROLL for (int g = 0; g < GROUPS; g++) sums[i][g] = zero();
      DO_NOT_UNROLL for (int x = 0; x < W; x++) {
        const real* patch = patches + (size_t)x * STRIDE;
        UNROLL for (int i = 0; i < AT_ONCE; i++) {
          Lanes value = broadcast(patch[k + i]);
          UNROLL for (int g = 0; g < GROUPS; g++) sums[i][g] = fused(value, load(patch + g * LANES), sums[i][g]);
        }
      }
      real rows[AT_ONCE][STRIDE];
      UNROLL for (int i = 0; i < AT_ONCE; i++) UNROLL for (int g = 0; g < GROUPS; g++) store(rows[i] + g * LANES, sums[i][g]);
      for (int i = 0; i < AT_ONCE; i++)
        for (int l = 0; l <= SIZE; l++) products.of[k + i][l] = rows[i][l];
    }
    return products;
  }

  const double* values_;
};
