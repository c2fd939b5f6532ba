//! A map that forgets: it holds at least the last `limit` keys that were put or looked up, and at most twice as many.

use std::{borrow::Borrow, collections::HashMap, hash::Hash};

/// Two generations: when the young one is full it becomes the old one, and what the old one held is dropped.
pub(super) struct Recent<K, V> {
    limit: usize,
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Eq + Hash + Clone, V: Clone> Recent<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    pub(super) fn get<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.put(key, value.clone());
        Some(value)
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.limit && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    pub(super) fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.young.remove(key);
        self.old.remove(key);
    }

    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_used_lately_and_stays_bounded() {
        let mut recent = Recent::new(4);
        for number in 0..100 {
            recent.put(number, number);
            assert_eq!(recent.get(&0), Some(0), "used all the time");
        }
        for number in 96..100 {
            assert_eq!(recent.get(&number), Some(number));
        }
        assert_eq!(recent.get(&50), None);
        assert!(recent.young.len() + recent.old.len() <= 8);
        recent.remove(&99);
        assert_eq!(recent.get(&99), None);
        recent.clear();
        assert_eq!(recent.get(&0), None);
    }
}
