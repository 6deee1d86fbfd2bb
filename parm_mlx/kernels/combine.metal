// log-softmax of base + guide / β for one row. Both rows of logits are read twice, the second time from the cache.

threadgroup float shared[2 * (THREADS / 32)];

const int t = thread_position_in_threadgroup.x;
const size_t row = threadgroup_position_in_grid.x;

auto base_row = base + row * BASE_V;
auto guide_row = guide + row * GUIDE_V;
const float s = scale[row];
float largest = LOWEST;
float total = 0.0f;
for (int start = t * STRIP; start < V; start += THREADS * STRIP) {
  float values[STRIP];
  for (int k = 0; k < STRIP; k++) {
    const int i = start + k;
    values[k] = i < V ? static_cast<float>(base_row[i]) + s * static_cast<float>(guide_row[i]) : -INFINITY;
  }
  absorb<STRIP>(values, largest, total);
}
join<THREADS / 32>(largest, total, shared, thread_index_in_simdgroup, simdgroup_index_in_threadgroup);

const float log_total = metal::log(total);
for (int i = t; i < V; i += THREADS) {
  const float value = static_cast<float>(base_row[i]) + s * static_cast<float>(guide_row[i]);
  guided[row * V + i] = value - largest - log_total;
}
