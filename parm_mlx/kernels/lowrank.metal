// TILE numbers of one row of y + ((x aᵀ) core) bᵀ. The R numbers u = (x aᵀ) core are cheap, and every threadgroup
// computes them for itself: that makes it one launch.
// a, core and b are read with steps, so that the gradient in x runs the same text on their transposes.

threadgroup float partial[R * (THREADS / 32)];
threadgroup float z[R];
threadgroup float u[R];

const int t = thread_position_in_threadgroup.x;
const int lane = thread_index_in_simdgroup;
const int group = simdgroup_index_in_threadgroup;
const size_t batch = threadgroup_position_in_grid.z;
const size_t row = batch * threadgroups_per_grid.y + threadgroup_position_in_grid.y;

auto x_row = x + row * IN;
float sums[R];
for (int j = 0; j < R; j++) {
  sums[j] = 0.0f;
}
for (int start = t * STRIP; start < IN; start += THREADS * STRIP) {
  for (int i = start; i < start + STRIP; i++) {
    const float value = static_cast<float>(x_row[i]);
    for (int j = 0; j < R; j++) {
      sums[j] += value * static_cast<float>(a[j * A_RANK + i * A_IN]);
    }
  }
}
for (int j = 0; j < R; j++) {
  const float sum = simd_sum(sums[j]);
  if (lane == 0) {
    partial[group * R + j] = sum;
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);

if (t < R) {
  float sum = 0.0f;
  for (int g = 0; g < THREADS / 32; g++) {
    sum += partial[g * R + t];
  }
  z[t] = sum;
}
threadgroup_barrier(mem_flags::mem_threadgroup);

if (t < R) {
  auto core_row = core + (ONE_CORE ? 0 : batch * (R * R));
  float sum = 0.0f;
  for (int j = 0; j < R; j++) {
    sum += z[j] * static_cast<float>(core_row[j * CORE_IN + t * CORE_OUT]);
  }
  u[t] = sum;
}
threadgroup_barrier(mem_flags::mem_threadgroup);

const int first = threadgroup_position_in_grid.x * TILE;
const int end = metal::min(first + TILE, OUT);
for (int o = first + t; o < end; o += THREADS) {
  float sum = 0.0f;
  for (int j = 0; j < R; j++) {
    sum += u[j] * static_cast<float>(b[o * B_OUT + j * B_RANK]);
  }
  if (ADD) {
    sum += static_cast<float>(y[row * OUT + o]);
  }
  updated[row * OUT + o] = static_cast<T>(sum);
}
