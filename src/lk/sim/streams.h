// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "lk/sim/spec.h"

namespace lk::sim {

// Adds the stream
// "tenant=NAME,rate=R[,kind=constant|poisson|gamma|on-off|ramp][,end-rate=R][,cv=C][,on=S,off=S][,from=S,to=S][,input=L]
// [,output=L][,weight=W]" to a specification; times in seconds. Streams of one tenant add up. kInvalidArgument says
// what is wrong.
Status add_stream(SimSpec& spec, const std::string& text);

}  // namespace lk::sim
