// The log-sum-exp of a row in one pass: each thread keeps the largest of the numbers it has met, and the sum of
// exp(number − largest). LOWEST stands for "none met": unlike −∞ it can be subtracted from itself.

constexpr constant float LOWEST = -3.402823466e38f;

// Takes STRIP more numbers into a thread's (largest, total).
template <int STRIP>
METAL_FUNC void absorb(thread const float* values, thread float& largest, thread float& total) {
  float above = largest;
  for (int k = 0; k < STRIP; k++) {
    above = metal::max(above, values[k]);
  }
  total *= metal::exp(largest - above);
  for (int k = 0; k < STRIP; k++) {
    total += metal::exp(values[k] - above);
  }
  largest = above;
}

// Turns (largest, total) of every thread into those of the row, in every thread. shared: 2 · GROUPS floats. Its type is
// deduced, since CUDA has no word for a pointer to them.
template <int GROUPS, typename Shared>
METAL_FUNC void join(thread float& largest, thread float& total, Shared shared, const int lane, const int group) {
  const float above = simd_max(largest);
  const float sum = simd_sum(total * metal::exp(largest - above));
  if (lane == 0) {
    shared[group] = above;
    shared[GROUPS + group] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float theirs = lane < GROUPS ? shared[lane] : LOWEST;
  const float part = lane < GROUPS ? shared[GROUPS + lane] : 0.0f;
  largest = simd_max(theirs);
  total = simd_sum(part * metal::exp(theirs - largest));
}
