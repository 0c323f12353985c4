// The decode kernel of index_select for FP8 index keys.
#include "gsa/ops/indexer/index_select_decode_kernel.cuh"

namespace gsa::decode {

Kernel pick_float8_kernel(int dim, int columns, bool solo) {
  return dim == 64 ? pick_kernel<Float8Keys, 64>(columns, solo) : pick_kernel<Float8Keys, 128>(columns, solo);
}

}  // namespace gsa::decode
