//! A map that forgets: of the keys that were put or looked up last it holds those that weigh `limit` together, and at most
//! twice as much. What nobody weighs weighs one.

use std::{borrow::Borrow, collections::HashMap, hash::Hash};

/// Two generations: when the young one is full it becomes the old one, and what the old one held is dropped.
pub(super) struct Recent<K, V> {
    limit: usize,
    /// What the young ones weigh together.
    weight: usize,
    young: HashMap<K, (V, usize)>,
    old: HashMap<K, (V, usize)>,
}

impl<K: Eq + Hash + Clone, V: Clone> Recent<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            weight: 0,
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    pub(super) fn get<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if let Some((value, _)) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, (value, weight)) = self.old.remove_entry(key)?;
        self.put_weighing(key, value.clone(), weight);
        Some(value)
    }

    /// As [`Recent::get`], but it does not count as a use.
    pub(super) fn peek<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let found = self.young.get(key).or_else(|| self.old.get(key));
        found.map(|(value, _)| value)
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        self.put_weighing(key, value, 1);
    }

    /// What weighs more than `limit` is not kept.
    pub(super) fn put_weighing(&mut self, key: K, value: V, weight: usize) {
        self.remove(&key);
        if weight > self.limit {
            return;
        }
        if self.weight + weight > self.limit {
            self.old = std::mem::take(&mut self.young);
            self.weight = 0;
        }
        self.weight += weight;
        self.young.insert(key, (value, weight));
    }

    pub(super) fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if let Some((_, weight)) = self.young.remove(key) {
            self.weight -= weight;
        }
        self.old.remove(key);
    }

    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.weight = 0;
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
            assert_eq!(recent.peek(&0), Some(&0));
        }
        for number in 96..100 {
            assert_eq!(recent.get(&number), Some(number));
        }
        assert_eq!(recent.get(&50), None);
        assert_eq!(recent.peek(&50), None);
        assert!(recent.young.len() + recent.old.len() <= 8);
        recent.remove(&99);
        assert_eq!(recent.get(&99), None);
        recent.clear();
        assert_eq!(recent.get(&0), None);
    }

    #[test]
    fn what_is_weighed_stays_within_twice_the_limit() {
        let mut recent = Recent::new(100);
        for number in 0..1000 {
            recent.put_weighing(number, number, 1 + number % 40);
            recent.put_weighing(0, 0, 30);
            recent.remove(&(number / 2));
            recent.get(&(number - number % 7));
            let young: usize = recent.young.values().map(|(_, weight)| weight).sum();
            let old: usize = recent.old.values().map(|(_, weight)| weight).sum();
            assert_eq!(young, recent.weight);
            assert!(young <= 100 && old <= 100);
        }
        recent.put_weighing(5, 5, 101);
        assert_eq!(recent.get(&5), None, "too heavy");
    }
}
