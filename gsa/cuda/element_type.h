// The types of elements that kernels take, when that is decided at run time.
#pragma once

namespace gsa {

enum class ElementType { kFloat, kHalf, kBfloat16 };

}  // namespace gsa
