#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(
    init: {
        // The fuzzer's own hook aborts on any panic; those of the tokenizers library
        // are caught, and any other still ends the run after this.
        std::panic::set_hook(Box::new(|info| {
            let library = info.location().is_some_and(|at| at.file().contains("/tokenizers-"));
            if !library {
                eprintln!("{info}");
            }
        }));
    },
    |bytes: &[u8]| bodies::inputs(bytes)
);
