// What `matmul` multiplies in.
alias Real = f32;
