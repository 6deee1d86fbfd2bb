// weight · d log p(target) / d logits = weight · (1 at the target − softmax), STRIP numbers of one row per thread.

const size_t row = threadgroup_position_in_grid.y;
const int start = thread_position_in_grid.x * STRIP;
const int end = metal::min(start + STRIP, V);

auto z = logits + row * V;
const int target = targets[row];
const float highest = largest[row];
const float w = weight[row];
const float scale = w / total[row];
for (int i = start; i < end; i++) {
  const float p = metal::exp(static_cast<float>(z[i]) - highest) * scale;
  slope[row * V + i] = static_cast<T>((i == target ? w : 0.0f) - p);
}
