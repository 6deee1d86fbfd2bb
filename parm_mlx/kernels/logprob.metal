// log p(target) of one row of logits; the row's largest logit and the sum of exp(logit − largest) are kept for the
// gradient.

threadgroup float shared[2 * (THREADS / 32)];

const int t = thread_position_in_threadgroup.x;
const size_t row = threadgroup_position_in_grid.x;

auto z = logits + row * V;
float highest = LOWEST;
float sum = 0.0f;
for (int start = t * STRIP; start < V; start += THREADS * STRIP) {
  float values[STRIP];
  for (int k = 0; k < STRIP; k++) {
    values[k] = start + k < V ? static_cast<float>(z[start + k]) : -INFINITY;
  }
  absorb<STRIP>(values, highest, sum);
}
join<THREADS / 32>(highest, sum, shared, thread_index_in_simdgroup, simdgroup_index_in_threadgroup);

if (t == 0) {
  logprob[row] = static_cast<float>(z[targets[row]]) - highest - metal::log(sum);
  largest[row] = highest;
  total[row] = sum;
}
