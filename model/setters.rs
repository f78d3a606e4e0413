//! Setters of option structs, which are `#[non_exhaustive]` so that a new field breaks nobody.

/// Defines a setter for each field of an option struct. Those under `into` take whatever converts
/// into the field's type.
///
/// ```
/// #[derive(Default)]
/// #[non_exhaustive]
/// pub struct Search {
///     /// The most results.
///     pub top_k: usize,
///     /// What the query is for.
///     pub task: String,
/// }
///
/// gritlm_model::setters!(Search { top_k: usize } into { task: String });
///
/// let search = Search::default().top_k(3).task("find a game");
/// assert_eq!((search.top_k, search.task.as_str()), (3, "find a game"));
/// ```
#[macro_export]
macro_rules! setters {
    ($name:ident { $($field:ident: $type:ty),* $(,)? }
        $(into { $($text:ident: $into:ty),* $(,)? })?) => {
        impl $name {
            $(
                #[doc = concat!("Sets [`", stringify!($name), "::", stringify!($field), "`](field@Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $field(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )*
            $($(
                #[doc = concat!("Sets [`", stringify!($name), "::", stringify!($text), "`](field@Self::", stringify!($text), ").")]
                #[must_use]
                pub fn $text(mut self, $text: impl Into<$into>) -> Self {
                    self.$text = $text.into();
                    self
                }
            )*)?
        }
    };
}
