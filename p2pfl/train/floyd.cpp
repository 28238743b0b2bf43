// Floyd's method (Bentley and Floyd 1987) for each of many keys: positions without replacement, as floyd() of
// stacked_sampling.py draws them, to the bit. Words of 32 bits wrap around here, so nothing is masked.
#include <cstdint>
#include <vector>

namespace {

inline uint32_t mix(uint32_t word) {  // lowbias32, see integer_hash.py
  word = (word ^ (word >> 16)) * 0x7FEB352Du;
  word = (word ^ (word >> 15)) * 0x846CA68Bu;
  return word ^ (word >> 16);
}

}  // namespace

// keys [sites, steps] of 0 to 2^32 - 1, counts [sites], 1 or more -> positions [sites, steps, batch].
extern "C" void floyd(const int64_t* keys, const int64_t* counts, int64_t* positions, int64_t sites, int64_t steps,
                      int64_t batch) {
  std::vector<uint32_t> spread(batch), chosen(batch);
  for (int64_t place = 0; place < batch; ++place) {
    spread[place] = mix(static_cast<uint32_t>(place) + 0x9E3779B9u);
  }
  for (int64_t cell = 0; cell < sites * steps; ++cell) {
    const int64_t count = counts[cell / steps];
    int64_t* own = positions + cell * batch;
    if (count <= batch) {
      for (int64_t place = 0; place < batch; ++place) {
        own[place] = place < count ? place : 0;
      }
      continue;
    }
    const uint32_t key = static_cast<uint32_t>(keys[cell]);
    const uint64_t top = count - batch;
    for (int64_t place = 0; place < batch; ++place) {
      const uint64_t word = mix(key ^ spread[place]);
      chosen[place] = static_cast<uint32_t>((word * (top + place + 1)) >> 32);
    }
    for (int64_t place = 1; place < batch; ++place) {
      bool taken = false;
      for (int64_t before = 0; before < place; ++before) {
        taken |= chosen[before] == chosen[place];
      }
      if (taken) {
        chosen[place] = static_cast<uint32_t>(top + place);
      }
    }
    for (int64_t place = 0; place < batch; ++place) {
      own[place] = chosen[place];
    }
  }
}
