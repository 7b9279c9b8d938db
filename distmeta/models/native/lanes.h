// Sixteen channels at a time. A sum over pixels or input channels is one chain per lane, so its order, and with it every bit of the result,
// is fixed by this code and not by how wide the machine's registers are. Products are added by explicit fused multiply-adds only.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>

typedef REAL real;  // float or double, by the compiler's command line
constexpr int LANES = 16;

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#define DO_NOT_UNROLL _Pragma("GCC unroll 1")

#ifdef __AVX512F__
constexpr int REGISTERS = 32;
typedef real Register __attribute__((vector_size(64)));
static INLINE __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
static INLINE __m512d fused(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
#else
constexpr int REGISTERS = 16;
typedef real Register __attribute__((vector_size(32)));
static INLINE __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
static INLINE __m256d fused(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
#endif
typedef decltype(Register{} > Register{}) MaskRegister;  // all bits of a lane set, or none

constexpr int WIDTH = sizeof(Register) / sizeof(real);
constexpr int PARTS = LANES / WIDTH;  // registers that hold the sixteen lanes
typedef uint8_t Bytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));

struct Lanes { Register part[PARTS]; };
struct Mask { MaskRegister part[PARTS]; };

// One loop over the parts for every operation below.
#define EACH_PART(expression) UNROLL for (int i = 0; i < PARTS; i++) expression

static INLINE Lanes load(const real* from) { Lanes a; EACH_PART(memcpy(&a.part[i], from + i * WIDTH, sizeof(Register))); return a; }
static INLINE void store(real* to, Lanes a) { EACH_PART(memcpy(to + i * WIDTH, &a.part[i], sizeof(Register))); }
static INLINE Lanes broadcast(real value) { Lanes a; EACH_PART(a.part[i] = value - Register{}); return a; }
static INLINE Lanes zero() { Lanes a; EACH_PART(a.part[i] = Register{}); return a; }
static INLINE Lanes operator+(Lanes a, Lanes b) { EACH_PART(a.part[i] += b.part[i]); return a; }
static INLINE Lanes operator-(Lanes a, Lanes b) { EACH_PART(a.part[i] -= b.part[i]); return a; }
static INLINE Lanes operator*(Lanes a, Lanes b) { EACH_PART(a.part[i] *= b.part[i]); return a; }
static INLINE Lanes fused(Lanes a, Lanes b, Lanes c) { EACH_PART(c.part[i] = fused(a.part[i], b.part[i], c.part[i])); return c; }  // a·b + c

static INLINE Mask operator>(Lanes a, Lanes b) { Mask m; EACH_PART(m.part[i] = a.part[i] > b.part[i]); return m; }
static INLINE Mask operator<=(Lanes a, Lanes b) { Mask m; EACH_PART(m.part[i] = a.part[i] <= b.part[i]); return m; }
static INLINE Mask is_nan(Lanes a) { Mask m; EACH_PART(m.part[i] = a.part[i] != a.part[i]); return m; }
static INLINE Mask operator|(Mask a, Mask b) { EACH_PART(a.part[i] |= b.part[i]); return a; }
static INLINE Lanes select(Mask m, Lanes yes, Lanes no) {
  EACH_PART(yes.part[i] = (Register)(((MaskRegister)yes.part[i] & m.part[i]) | ((MaskRegister)no.part[i] & ~m.part[i])));
  return yes;
}

// Small numbers, one a lane, kept in memory as bytes.
static INLINE Mask load_bytes(const uint8_t* from) {
  Mask a;
  EACH_PART(a.part[i] = __builtin_convertvector(*(const Bytes*)(from + i * WIDTH), MaskRegister));
  return a;
}
static INLINE void store_bytes(uint8_t* to, Mask a) { EACH_PART(*(Bytes*)(to + i * WIDTH) = __builtin_convertvector(a.part[i], Bytes)); }
static INLINE Mask equals(Mask a, int number) { EACH_PART(a.part[i] = a.part[i] == number); return a; }
static INLINE Mask choose(Mask m, int number, Mask otherwise) {
  EACH_PART(otherwise.part[i] = ((MaskRegister{} + number) & m.part[i]) | (otherwise.part[i] & ~m.part[i]));
  return otherwise;
}

// Memory of one call, aligned to cache lines; its content is undefined at first.
template <class T> class Buffer {
 public:
  explicit Buffer(size_t count) : data_((T*)aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64)) {
    if (!data_) throw std::bad_alloc();
  }
  ~Buffer() { free(data_); }
  Buffer(Buffer&& other) : data_(other.data_) { other.data_ = nullptr; }
  Buffer& operator=(const Buffer&) = delete;
  operator T*() { return data_; }
  operator const T*() const { return data_; }

 private:
  T* data_;
};

// Calls body with the first of these numbers that is at least n, as a constant: loops up to it have a length that the compiler knows.
template <int FIRST, int... OTHERS, class Body> static INLINE void with_constant(int n, Body body) {
  if constexpr (sizeof...(OTHERS) == 0) body(std::integral_constant<int, FIRST>());
  else if (n <= FIRST) body(std::integral_constant<int, FIRST>());
  else with_constant<OTHERS...>(n, body);
}

// Sizes of N images (H, W) with channels last, convolved from `in` to `out` channels.
struct Sizes {
  int N, H, W, in, out;
  size_t pixels() const { return (size_t)H * W; }
  size_t pooled() const { return (size_t)(H / 2) * (W / 2); }
  double count() const { return (double)N * H * W; }
};
