//! Pages cut by key: the millionth row costs as much as the first.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Problem;

const DEFAULT_SIZE: i64 = 50;
const MAX_SIZE: i64 = 500;

/// A page of a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Give it as `page_token` to read on; null at the end.
    pub next_page_token: Option<String>,
}

/// Which page is asked for; `K` is the key of the list's order.
#[derive(Debug, Clone)]
pub struct PageRequest<K> {
    size: usize,
    /// The key of the last item of the page before.
    pub after: Option<K>,
}

impl<K: Serialize + DeserializeOwned> PageRequest<K> {
    /// Reads the two parameters.
    ///
    /// # Errors
    /// A size out of range, or a token that this service has not given.
    pub fn new(size: Option<i64>, token: Option<&str>) -> Result<Self, Problem> {
        let size = size.unwrap_or(DEFAULT_SIZE);
        if !(1..=MAX_SIZE).contains(&size) {
            return Err(Problem::invalid_parameter(
                "page_size",
                format!("must be 1 to {MAX_SIZE}, is {size}"),
            ));
        }
        let after = token
            .map(|token| {
                BASE64_URL_SAFE_NO_PAD
                    .decode(token)
                    .ok()
                    .and_then(|bytes| serde_json::from_slice(&bytes).ok())
                    .ok_or_else(|| {
                        Problem::invalid_parameter(
                            "page_token",
                            "must be a next_page_token of this list",
                        )
                    })
            })
            .transpose()?;
        Ok(Self {
            size: size as usize,
            after,
        })
    }

    /// Rows to read: one more than the page, to know whether there is another.
    pub fn limit(&self) -> i64 {
        self.size as i64 + 1
    }

    /// Cuts what was read down to the page.
    pub fn page<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> K) -> Page<T> {
        let more = items.len() > self.size;
        items.truncate(self.size);
        let next_page_token = items.last().filter(|_| more).and_then(|last| {
            serde_json::to_vec(&key(last))
                .ok()
                .map(|bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes))
        });
        Page {
            items,
            next_page_token,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_leads_to_the_next_and_the_last_to_none() {
        let request = PageRequest::<u32>::new(Some(2), None).expect("a request");
        assert_eq!(request.limit(), 3);
        let page = request.page(vec![1, 2, 3], |item| *item);
        assert_eq!(page.items, [1, 2]);
        let token = page.next_page_token.expect("more");
        let next = PageRequest::<u32>::new(Some(2), Some(&token)).expect("a request");
        assert_eq!(next.after, Some(2));
        assert!(next.page(vec![3], |item| *item).next_page_token.is_none());
    }

    #[test]
    fn foreign_tokens_and_sizes_are_refused() {
        for token in ["", "x", "bm8", "eyJhIjoxfQ"] {
            assert!(
                PageRequest::<u32>::new(None, Some(token)).is_err(),
                "{token}"
            );
        }
        for size in [0, -1, 501, i64::MAX] {
            assert!(PageRequest::<u32>::new(Some(size), None).is_err(), "{size}");
        }
    }
}
