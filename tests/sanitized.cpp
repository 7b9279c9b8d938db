// The native blocks without Python or torch, for compilers' sanitizers: every function on odd, even and smallest sizes, in four threads at
// once, each of which must compute the same numbers.
#include <cstdio>
#include <thread>
#include <vector>

#include "blocks.cpp"

// Evaluation mode is no part of the probe, which decides whether a training may be resumed.
static void evaluate(Probe& probe, Sizes s) {
  const size_t small = s.N * s.pooled() * s.out;
  Buffer<real> x = probe.numbers(s.N * s.pixels() * s.in), w = probe.numbers((size_t)9 * s.in * s.out), output(small);
  Buffer<real> gamma = probe.numbers(s.out), beta = probe.numbers(s.out), mean = probe.numbers(s.out), variance = probe.numbers(s.out);
  if (s.in == 3)
    first_block_evaluate(s.N, s.H, s.W, s.in, s.out, x, (int64_t)s.pixels() * 3, 1, (int64_t)s.W * 3, 3, w, gamma, beta, mean, variance, 1e-5, output);
  else
    block_evaluate(s.N, s.H, s.W, s.in, s.out, x, w, gamma, beta, mean, variance, 1e-5, output);
  probe.take(output, small * sizeof(real));
}

static uint64_t all_sizes() {
  Probe probe;
  for (int side : {2, 3, 5, 8, 13})
    for (int groups : {1, 2, 3}) {
      probe_hidden(probe, {3, side, side + 1, 16, 16 * groups});
      probe_hidden(probe, {2, side + 2, side, 16 * groups, 32});
      probe_first<1>(probe, {2, side, side + 3, 1, 16 * groups});
      probe_first<3>(probe, {2, side + 1, side, 3, 16 * groups});
      probe_convolution(probe, {2, side, side + 1, 16, 16 * groups});
      probe_convolution(probe, {2, side + 1, side, 16 * groups, 32});
      evaluate(probe, {3, side, side + 1, 16, 16 * groups});
      evaluate(probe, {2, side + 1, side, 3, 16 * groups});
    }
  probe_hidden(probe, {80, 3, 3, 32, 32});
  return probe.digest();
}

int main() {
  std::vector<uint64_t> found(4);
  std::vector<std::thread> threads;
  for (uint64_t& mine : found) threads.emplace_back([&mine] { mine = all_sizes(); });
  for (std::thread& thread : threads) thread.join();
  for (uint64_t one : found)
    if (one != found[0]) return 1;
  std::printf("%016llx\n", (unsigned long long)found[0]);
}
